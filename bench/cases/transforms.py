"""Group `transforms`: what routing policies, transforms and codecs are worth and cost. Each part has a file of rows."""

from __future__ import annotations

from bench.cases.transforms_codecs import CODECS
from bench.cases.transforms_fusion import FUSION
from bench.cases.transforms_pays import PAYS
from bench.cases.transforms_routes import ROUTES
from bench.cases.transforms_stage import STAGE
from bench.rows import Row

TRANSFORMS: tuple[Row, ...] = (*CODECS, *PAYS, *FUSION, *ROUTES, *STAGE)

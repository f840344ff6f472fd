from google.protobuf import struct_pb2 as _struct_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ("node", "number", "incarnation", "state", "version", "pid", "keeper_pid", "socket", "control_socket", "state_dir", "log", "listen", "registry", "generation", "uptime_s", "ports", "channels", "modules", "plugins", "more")
    NODE_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    INCARNATION_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    KEEPER_PID_FIELD_NUMBER: _ClassVar[int]
    SOCKET_FIELD_NUMBER: _ClassVar[int]
    CONTROL_SOCKET_FIELD_NUMBER: _ClassVar[int]
    STATE_DIR_FIELD_NUMBER: _ClassVar[int]
    LOG_FIELD_NUMBER: _ClassVar[int]
    LISTEN_FIELD_NUMBER: _ClassVar[int]
    REGISTRY_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    UPTIME_S_FIELD_NUMBER: _ClassVar[int]
    PORTS_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    MODULES_FIELD_NUMBER: _ClassVar[int]
    PLUGINS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    node: str
    number: int
    incarnation: int
    state: str
    version: str
    pid: int
    keeper_pid: int
    socket: str
    control_socket: str
    state_dir: str
    log: str
    listen: str
    registry: str
    generation: int
    uptime_s: float
    ports: int
    channels: int
    modules: int
    plugins: int
    more: _struct_pb2.Struct
    def __init__(self, node: _Optional[str] = ..., number: _Optional[int] = ..., incarnation: _Optional[int] = ..., state: _Optional[str] = ..., version: _Optional[str] = ..., pid: _Optional[int] = ..., keeper_pid: _Optional[int] = ..., socket: _Optional[str] = ..., control_socket: _Optional[str] = ..., state_dir: _Optional[str] = ..., log: _Optional[str] = ..., listen: _Optional[str] = ..., registry: _Optional[str] = ..., generation: _Optional[int] = ..., uptime_s: _Optional[float] = ..., ports: _Optional[int] = ..., channels: _Optional[int] = ..., modules: _Optional[int] = ..., plugins: _Optional[int] = ..., more: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class TopologyRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TopologyReply(_message.Message):
    __slots__ = ("generation", "nodes", "links", "ports", "channels", "more")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    NODES_FIELD_NUMBER: _ClassVar[int]
    LINKS_FIELD_NUMBER: _ClassVar[int]
    PORTS_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    generation: int
    nodes: _containers.RepeatedCompositeFieldContainer[_struct_pb2.Struct]
    links: _containers.RepeatedCompositeFieldContainer[_struct_pb2.Struct]
    ports: _containers.RepeatedCompositeFieldContainer[_struct_pb2.Struct]
    channels: _containers.RepeatedCompositeFieldContainer[_struct_pb2.Struct]
    more: _struct_pb2.Struct
    def __init__(self, generation: _Optional[int] = ..., nodes: _Optional[_Iterable[_Union[_struct_pb2.Struct, _Mapping]]] = ..., links: _Optional[_Iterable[_Union[_struct_pb2.Struct, _Mapping]]] = ..., ports: _Optional[_Iterable[_Union[_struct_pb2.Struct, _Mapping]]] = ..., channels: _Optional[_Iterable[_Union[_struct_pb2.Struct, _Mapping]]] = ..., more: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class ListRequest(_message.Message):
    __slots__ = ("kind",)
    KIND_FIELD_NUMBER: _ClassVar[int]
    kind: str
    def __init__(self, kind: _Optional[str] = ...) -> None: ...

class ListReply(_message.Message):
    __slots__ = ("rows",)
    ROWS_FIELD_NUMBER: _ClassVar[int]
    rows: _containers.RepeatedCompositeFieldContainer[_struct_pb2.Struct]
    def __init__(self, rows: _Optional[_Iterable[_Union[_struct_pb2.Struct, _Mapping]]] = ...) -> None: ...

class ShowRequest(_message.Message):
    __slots__ = ("kind", "name")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    kind: str
    name: str
    def __init__(self, kind: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class ShowReply(_message.Message):
    __slots__ = ("row",)
    ROW_FIELD_NUMBER: _ClassVar[int]
    row: _struct_pb2.Struct
    def __init__(self, row: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class SpecRequest(_message.Message):
    __slots__ = ("text", "source", "search")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    SEARCH_FIELD_NUMBER: _ClassVar[int]
    text: str
    source: str
    search: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, text: _Optional[str] = ..., source: _Optional[str] = ..., search: _Optional[_Iterable[str]] = ...) -> None: ...

class Problem(_message.Message):
    __slots__ = ("where", "what", "fix", "place", "severity")
    WHERE_FIELD_NUMBER: _ClassVar[int]
    WHAT_FIELD_NUMBER: _ClassVar[int]
    FIX_FIELD_NUMBER: _ClassVar[int]
    PLACE_FIELD_NUMBER: _ClassVar[int]
    SEVERITY_FIELD_NUMBER: _ClassVar[int]
    where: str
    what: str
    fix: str
    place: str
    severity: str
    def __init__(self, where: _Optional[str] = ..., what: _Optional[str] = ..., fix: _Optional[str] = ..., place: _Optional[str] = ..., severity: _Optional[str] = ...) -> None: ...

class Change(_message.Message):
    __slots__ = ("kind", "name", "action", "detail")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    kind: str
    name: str
    action: str
    detail: str
    def __init__(self, kind: _Optional[str] = ..., name: _Optional[str] = ..., action: _Optional[str] = ..., detail: _Optional[str] = ...) -> None: ...

class ValidateReply(_message.Message):
    __slots__ = ("problems", "more")
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    problems: _containers.RepeatedCompositeFieldContainer[Problem]
    more: _struct_pb2.Struct
    def __init__(self, problems: _Optional[_Iterable[_Union[Problem, _Mapping]]] = ..., more: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class ApplyReply(_message.Message):
    __slots__ = ("generation", "changes", "problems", "more")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    PROBLEMS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    generation: int
    changes: _containers.RepeatedCompositeFieldContainer[Change]
    problems: _containers.RepeatedCompositeFieldContainer[Problem]
    more: _struct_pb2.Struct
    def __init__(self, generation: _Optional[int] = ..., changes: _Optional[_Iterable[_Union[Change, _Mapping]]] = ..., problems: _Optional[_Iterable[_Union[Problem, _Mapping]]] = ..., more: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class DiffRequest(_message.Message):
    __slots__ = ("old", "new", "spec")
    OLD_FIELD_NUMBER: _ClassVar[int]
    NEW_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    old: int
    new: int
    spec: SpecRequest
    def __init__(self, old: _Optional[int] = ..., new: _Optional[int] = ..., spec: _Optional[_Union[SpecRequest, _Mapping]] = ...) -> None: ...

class RollbackRequest(_message.Message):
    __slots__ = ("generation",)
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    generation: int
    def __init__(self, generation: _Optional[int] = ...) -> None: ...

class HistoryRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class HistoryReply(_message.Message):
    __slots__ = ("generation", "live", "rows", "more")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    LIVE_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    generation: int
    live: _containers.RepeatedScalarFieldContainer[int]
    rows: _containers.RepeatedCompositeFieldContainer[_struct_pb2.Struct]
    more: _struct_pb2.Struct
    def __init__(self, generation: _Optional[int] = ..., live: _Optional[_Iterable[int]] = ..., rows: _Optional[_Iterable[_Union[_struct_pb2.Struct, _Mapping]]] = ..., more: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class PluginLoadRequest(_message.Message):
    __slots__ = ("path", "source", "channel", "kind")
    PATH_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    path: str
    source: str
    channel: str
    kind: str
    def __init__(self, path: _Optional[str] = ..., source: _Optional[str] = ..., channel: _Optional[str] = ..., kind: _Optional[str] = ...) -> None: ...

class Export(_message.Message):
    __slots__ = ("kind", "name", "accepts", "produces", "more")
    KIND_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    ACCEPTS_FIELD_NUMBER: _ClassVar[int]
    PRODUCES_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    kind: str
    name: str
    accepts: str
    produces: str
    more: _struct_pb2.Struct
    def __init__(self, kind: _Optional[str] = ..., name: _Optional[str] = ..., accepts: _Optional[str] = ..., produces: _Optional[str] = ..., more: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class PluginLoadReply(_message.Message):
    __slots__ = ("name", "exports", "channel", "generation", "more")
    NAME_FIELD_NUMBER: _ClassVar[int]
    EXPORTS_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    name: str
    exports: _containers.RepeatedCompositeFieldContainer[Export]
    channel: str
    generation: int
    more: _struct_pb2.Struct
    def __init__(self, name: _Optional[str] = ..., exports: _Optional[_Iterable[_Union[Export, _Mapping]]] = ..., channel: _Optional[str] = ..., generation: _Optional[int] = ..., more: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class PluginChangeRequest(_message.Message):
    __slots__ = ("verb", "name", "path", "source", "seconds", "messages", "version")
    VERB_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    verb: str
    name: str
    path: str
    source: str
    seconds: float
    messages: int
    version: int
    def __init__(self, verb: _Optional[str] = ..., name: _Optional[str] = ..., path: _Optional[str] = ..., source: _Optional[str] = ..., seconds: _Optional[float] = ..., messages: _Optional[int] = ..., version: _Optional[int] = ...) -> None: ...

class PluginChangeReply(_message.Message):
    __slots__ = ("row",)
    ROW_FIELD_NUMBER: _ClassVar[int]
    row: _struct_pb2.Struct
    def __init__(self, row: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class LogsRequest(_message.Message):
    __slots__ = ("name", "lines")
    NAME_FIELD_NUMBER: _ClassVar[int]
    LINES_FIELD_NUMBER: _ClassVar[int]
    name: str
    lines: int
    def __init__(self, name: _Optional[str] = ..., lines: _Optional[int] = ...) -> None: ...

class LogsReply(_message.Message):
    __slots__ = ("lines", "more")
    LINES_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    lines: _containers.RepeatedScalarFieldContainer[str]
    more: _struct_pb2.Struct
    def __init__(self, lines: _Optional[_Iterable[str]] = ..., more: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class ModuleStopRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ModuleStopReply(_message.Message):
    __slots__ = ("name", "state", "more")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: str
    more: _struct_pb2.Struct
    def __init__(self, name: _Optional[str] = ..., state: _Optional[str] = ..., more: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class ModuleDrainRequest(_message.Message):
    __slots__ = ("name", "grace_s")
    NAME_FIELD_NUMBER: _ClassVar[int]
    GRACE_S_FIELD_NUMBER: _ClassVar[int]
    name: str
    grace_s: float
    def __init__(self, name: _Optional[str] = ..., grace_s: _Optional[float] = ...) -> None: ...

class ModuleScaleRequest(_message.Message):
    __slots__ = ("name", "replicas")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REPLICAS_FIELD_NUMBER: _ClassVar[int]
    name: str
    replicas: int
    def __init__(self, name: _Optional[str] = ..., replicas: _Optional[int] = ...) -> None: ...

class AuditRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AuditReply(_message.Message):
    __slots__ = ("verdict", "reason", "duration_ms", "differences", "channels", "more")
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    DURATION_MS_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCES_FIELD_NUMBER: _ClassVar[int]
    CHANNELS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    verdict: str
    reason: str
    duration_ms: float
    differences: _containers.RepeatedCompositeFieldContainer[_struct_pb2.Struct]
    channels: _containers.RepeatedCompositeFieldContainer[_struct_pb2.Struct]
    more: _struct_pb2.Struct
    def __init__(self, verdict: _Optional[str] = ..., reason: _Optional[str] = ..., duration_ms: _Optional[float] = ..., differences: _Optional[_Iterable[_Union[_struct_pb2.Struct, _Mapping]]] = ..., channels: _Optional[_Iterable[_Union[_struct_pb2.Struct, _Mapping]]] = ..., more: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class BenchEdgeRequest(_message.Message):
    __slots__ = ("source", "target", "seconds", "size_bytes", "memory_bytes")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    source: str
    target: str
    seconds: float
    size_bytes: int
    memory_bytes: int
    def __init__(self, source: _Optional[str] = ..., target: _Optional[str] = ..., seconds: _Optional[float] = ..., size_bytes: _Optional[int] = ..., memory_bytes: _Optional[int] = ...) -> None: ...

class BenchReply(_message.Message):
    __slots__ = ("source", "target", "budget", "used", "steps", "path", "load", "more")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    USED_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    PATH_FIELD_NUMBER: _ClassVar[int]
    LOAD_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    source: str
    target: str
    budget: _struct_pb2.Struct
    used: _struct_pb2.Struct
    steps: _containers.RepeatedCompositeFieldContainer[_struct_pb2.Struct]
    path: _containers.RepeatedCompositeFieldContainer[_struct_pb2.Struct]
    load: _containers.RepeatedCompositeFieldContainer[_struct_pb2.Struct]
    more: _struct_pb2.Struct
    def __init__(self, source: _Optional[str] = ..., target: _Optional[str] = ..., budget: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., used: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., steps: _Optional[_Iterable[_Union[_struct_pb2.Struct, _Mapping]]] = ..., path: _Optional[_Iterable[_Union[_struct_pb2.Struct, _Mapping]]] = ..., load: _Optional[_Iterable[_Union[_struct_pb2.Struct, _Mapping]]] = ..., more: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class BenchPathRequest(_message.Message):
    __slots__ = ("peer", "seconds", "size_bytes", "memory_bytes")
    PEER_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    peer: str
    seconds: float
    size_bytes: int
    memory_bytes: int
    def __init__(self, peer: _Optional[str] = ..., seconds: _Optional[float] = ..., size_bytes: _Optional[int] = ..., memory_bytes: _Optional[int] = ...) -> None: ...

class PathListRequest(_message.Message):
    __slots__ = ("source",)
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    source: str
    def __init__(self, source: _Optional[str] = ...) -> None: ...

class PathShowRequest(_message.Message):
    __slots__ = ("peer", "rail", "size_bytes", "source")
    PEER_FIELD_NUMBER: _ClassVar[int]
    RAIL_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    peer: str
    rail: int
    size_bytes: int
    source: str
    def __init__(self, peer: _Optional[str] = ..., rail: _Optional[int] = ..., size_bytes: _Optional[int] = ..., source: _Optional[str] = ...) -> None: ...

class PathWhyRequest(_message.Message):
    __slots__ = ("source", "target", "size_bytes", "klass")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    KLASS_FIELD_NUMBER: _ClassVar[int]
    source: str
    target: str
    size_bytes: int
    klass: str
    def __init__(self, source: _Optional[str] = ..., target: _Optional[str] = ..., size_bytes: _Optional[int] = ..., klass: _Optional[str] = ...) -> None: ...

class CodecRequest(_message.Message):
    __slots__ = ("channel", "is_measured", "codecs", "seconds")
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    IS_MEASURED_FIELD_NUMBER: _ClassVar[int]
    CODECS_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    channel: str
    is_measured: bool
    codecs: _containers.RepeatedScalarFieldContainer[str]
    seconds: float
    def __init__(self, channel: _Optional[str] = ..., is_measured: _Optional[bool] = ..., codecs: _Optional[_Iterable[str]] = ..., seconds: _Optional[float] = ...) -> None: ...

class PathProbeRequest(_message.Message):
    __slots__ = ("peer", "rail", "trips", "size_bytes", "seconds", "source")
    PEER_FIELD_NUMBER: _ClassVar[int]
    RAIL_FIELD_NUMBER: _ClassVar[int]
    TRIPS_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    peer: str
    rail: int
    trips: int
    size_bytes: int
    seconds: float
    source: str
    def __init__(self, peer: _Optional[str] = ..., rail: _Optional[int] = ..., trips: _Optional[int] = ..., size_bytes: _Optional[int] = ..., seconds: _Optional[float] = ..., source: _Optional[str] = ...) -> None: ...

class PathPinRequest(_message.Message):
    __slots__ = ("peer", "rails")
    PEER_FIELD_NUMBER: _ClassVar[int]
    RAILS_FIELD_NUMBER: _ClassVar[int]
    peer: str
    rails: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, peer: _Optional[str] = ..., rails: _Optional[_Iterable[int]] = ...) -> None: ...

class PathReply(_message.Message):
    __slots__ = ("source", "peer", "rails", "words", "more")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    PEER_FIELD_NUMBER: _ClassVar[int]
    RAILS_FIELD_NUMBER: _ClassVar[int]
    WORDS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    source: str
    peer: str
    rails: _containers.RepeatedCompositeFieldContainer[_struct_pb2.Struct]
    words: _containers.RepeatedScalarFieldContainer[str]
    more: _struct_pb2.Struct
    def __init__(self, source: _Optional[str] = ..., peer: _Optional[str] = ..., rails: _Optional[_Iterable[_Union[_struct_pb2.Struct, _Mapping]]] = ..., words: _Optional[_Iterable[str]] = ..., more: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class EventsRequest(_message.Message):
    __slots__ = ("drops", "reason", "channel", "since", "after")
    class AfterEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    DROPS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    CHANNEL_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    drops: bool
    reason: str
    channel: str
    since: float
    after: _containers.ScalarMap[str, int]
    def __init__(self, drops: _Optional[bool] = ..., reason: _Optional[str] = ..., channel: _Optional[str] = ..., since: _Optional[float] = ..., after: _Optional[_Mapping[str, int]] = ...) -> None: ...

class EventsReply(_message.Message):
    __slots__ = ("events", "next", "lost", "more")
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    events: _containers.RepeatedCompositeFieldContainer[_struct_pb2.Struct]
    next: _struct_pb2.Struct
    lost: _struct_pb2.Struct
    more: _struct_pb2.Struct
    def __init__(self, events: _Optional[_Iterable[_Union[_struct_pb2.Struct, _Mapping]]] = ..., next: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., lost: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ..., more: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

class MetricsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class MetricsReply(_message.Message):
    __slots__ = ("text",)
    TEXT_FIELD_NUMBER: _ClassVar[int]
    text: str
    def __init__(self, text: _Optional[str] = ...) -> None: ...

class DownRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class DownReply(_message.Message):
    __slots__ = ("pids", "more")
    PIDS_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    pids: _containers.RepeatedScalarFieldContainer[int]
    more: _struct_pb2.Struct
    def __init__(self, pids: _Optional[_Iterable[int]] = ..., more: _Optional[_Union[_struct_pb2.Struct, _Mapping]] = ...) -> None: ...

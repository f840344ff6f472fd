"""Sessions stay where they began; a new one goes to the replica with the fewest of them."""

from collections import Counter

import fabric


@fabric.route("sessions", reads=["session"], fallback="hash_key")
class Sessions:
    def __init__(self, most: int = 10_000) -> None:
        self.most = most
        self.homes: dict[str, int] = {}  # session → endpoint

    def select(self, header, targets):
        session = header.fields["session"]
        by_endpoint = {target.endpoint: target for target in targets}
        home = self.homes.get(session)
        if home not in by_endpoint:
            there = Counter(self.homes.values())
            home = min(by_endpoint, key=lambda endpoint: (there[endpoint], endpoint))
        self.homes.pop(session, None)  # to the young end
        self.homes[session] = home
        while len(self.homes) > self.most:
            del self.homes[next(iter(self.homes))]
        return by_endpoint[home]

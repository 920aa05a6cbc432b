"""What a fleet must have counted, in 60 lines: everything is kept, and every answer is added up anew."""

from __future__ import annotations

AMOUNT, SUB_BUCKET_MS, CALLS = 100, 1_000, 3  # tokens in any minute; a sixtieth of it; reservations open at once


class Oracle:
    def __init__(self):
        self.now_ms, self.duplicates, self.dead, self.used = 0, 0, [], []  # (entry, reason); (when, agent, tokens)
        self.seen, self.booked, self.answers = {}, {}, {}  # tokens by identity; lives; what requests must be told

    def tick(self, now_ms):
        self.now_ms = now_ms
        for each in self.booked.values():
            if each["state"] == "open" and each["expires_ms"] <= now_ms:
                each["state"] = "expired"

    def take(self, now_ms, entry, agent, tokens, identity):
        self.tick(now_ms)
        if identity not in self.seen:
            self.seen[identity] = tokens
            self.used.append((now_ms, agent, tokens))
        elif self.seen[identity] == tokens:
            self.duplicates += 1
        else:
            self.dead.append((entry, "id_conflict"))

    def taken(self, of_the_minute=True):
        lives = [(each["at_ms"], each["state"], each["tokens"]) for each in self.booked.values()]
        lives += [(at_ms, "used", tokens) for at_ms, _, tokens in self.used]
        oldest = self.now_ms // SUB_BUCKET_MS - 60 if of_the_minute else 0
        inside = [each for each in lives if each[0] // SUB_BUCKET_MS >= oldest]
        used = sum(tokens for _, state, tokens in inside if state in {"used", "expired"})
        return used, sum(tokens for _, state, tokens in inside if state == "open")

    def open(self):
        return sum(each["state"] == "open" for each in self.booked.values())

    def reserve(self, now_ms, name, tokens, ttl_ms):
        self.tick(now_ms)
        if granted := sum(self.taken()) + tokens <= AMOUNT and self.open() < CALLS:
            self.booked[name] = {"at_ms": now_ms, "tokens": tokens, "expires_ms": now_ms + ttl_ms, "state": "open"}
        return {"granted": granted, "reservation": name if granted else None}

    def settle(self, now_ms, name, agent, tokens):
        self.tick(now_ms)
        each = self.booked.setdefault(name, {"at_ms": now_ms, "tokens": 0, "state": "unknown"})
        if (state := each["state"]) != "settled":
            held = each["tokens"] if state in {"open", "expired"} else 0
            self.used += [(each["at_ms"], agent, min(held, tokens)), (now_ms, agent, max(0, tokens - held))]
            debt = dict.fromkeys(("l", "day"), tokens - held) if held and tokens > held else {}
            told = {"counted": True, "unknown": state == "unknown", "late": state in {"expired", "released"}}
            each |= {"state": "settled", "told": {**told, "debt": debt}}
        return each["told"]

    def release(self, now_ms, name):
        self.tick(now_ms)
        if released := self.booked.get(name, {}).get("state") == "open":
            self.booked[name]["state"] = "released"
        return {"released": released}

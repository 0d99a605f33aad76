#!/usr/bin/env python3
"""OPA itself as the judge of what compiled Rego means: policies and inputs made by chance.

    cargo build --example opa_differential
    examples/interop/opa/random_policies.py /tmp/opa target/debug/examples/opa_differential [policies] [seed]

/tmp/opa is the unpacked wheel of differential.py. Small rules of assignments, negations, quantifiers,
comprehensions, functions and else, over documents in which anything may be missing: what is undefined
where, and what follows from it. Ends with 1 when a single value differs. Counted are what only one side
refuses at load (OPA checks types; regorus' scheduler does not order everything), and answers of which
one is an error: which of two statements is evaluated first decides that, and both deny.
"""

import json, random, subprocess, sys

sys.path.insert(0, sys.argv[1])
from opa_bindings import OpaEngine  # noqa: E402
from opa_bindings.engine import OpaError, OpaUndefinedError  # noqa: E402

COUNT = int(sys.argv[3]) if len(sys.argv) > 3 else 300
SEED = int(sys.argv[4]) if len(sys.argv) > 4 else 1
INPUTS = 12
rng = random.Random(SEED)
DATA = {"d": {"a": 1, "b": {"c": 2}}, "list": [1, 2, "x"], "names": {"x": True, "y": False}, "empty": []}


def pick(*choices):
    return rng.choice(choices)


class Body:
    """Statements, and the variables that they bind."""

    def __init__(self, outer=(), functions=()):
        self.vars, self.functions, self.made, self.negated = list(outer), functions, 0, False

    def name(self):
        self.made += 1
        return f"v{len(self.vars)}_{self.made}"

    def ref(self):
        plain = ["input.a", "input.b", "input.o.k", "input.o.m.n", "data.d.a", "data.d.b.c", "data.d.missing",
                 "input.xs[0]", "input.xs[1]", "data.names.x", "helper", "other", "table.k", "table.x",
                 "data.envoy.authz.helper"]
        keyed = [f"{base}[{name}]" for base in ("input.o", "data.names", "input", "table", "partial", "data.d")
                 for name in self.vars]
        # What is looked for under a negation alone, OPA refuses.
        if not self.negated and rng.random() < 0.12:
            return pick("input.xs[_]", "data.list[_]", "input.o[_]", "table[_]", "partial[_]", "data.names[_]")
        return pick(*plain, *self.vars * 3, *keyed)

    def coll(self, depth):
        return pick("input.xs", "input.o", "data.list", "data.empty", "input.ys", "[1, 2, 3]", "{1, \"x\"}", "[]",
                    "data.names", "partial", "table", "object.keys(input.o)", "{1, 2} | partial", "partial - {1}", "partial & {1, \"x\"}",
                    *([self.compr(depth + 1)] if depth < 2 else []))

    def term(self, depth=0):
        kind = rng.random()
        if kind < 0.5:
            return self.ref()
        if kind < 0.68:
            return pick("1", "2", "\"x\"", "\"k\"", "true", "false", "null")
        if kind < 0.74:
            return f"count({self.coll(depth)})"
        if kind < 0.8 and depth < 2:
            return f"[{self.term(depth + 1)}, {self.term(depth + 1)}]"
        if kind < 0.84 and depth < 2:
            return f"{{\"k\": {self.term(depth + 1)}}}"
        if kind < 0.88:
            return f"object.get({pick('input.o', 'data.names', 'input')}, \"{pick('k', 'z')}\", {self.term(depth + 1)})"
        if kind < 0.905:
            one, other = self.term(depth + 1), self.term(depth + 1)
            return pick(f"startswith({one}, \"x\")", f"array.concat([{one}], input.xs)", f"object.union(input.o, {{\"k\": {one}}})",
                        f"sprintf(\"%v\", [{one}])", f"concat(\",\", [{one}, \"x\"])", f"is_string({one})", f"type_name({one})",
                        f"sum([{one}, 1])", f"max([{one}, 1])", "array.slice(input.xs, 0, 1)", f"{one} + 1", "-input.a",
                        f"union({{partial, {{{one}}}}})", "sort(input.xs)", f"to_number({one})", f"object.remove(input.o, [{one}])",
                        f"trim({one}, \"x\")", f"object.get(input, [\"o\", {one}], {other})", f"json.marshal({one})",
                        f"{{{one}, {other}}}", f"input.o[{one}]", f"data.names[{one}]", "input.xs[count(input.xs) - 1]")
        if kind < 0.93 and self.functions:
            return f"{pick(*self.functions)}({self.term(depth + 1)}, {self.term(depth + 1)})"
        return self.compr(depth + 1) if depth < 2 else self.ref()

    def inner(self):
        return Body(self.vars, self.functions)

    def compr(self, depth):
        body = self.inner()
        lines = body.statements(rng.randint(1, 2), depth + 1)
        left, right = pick("[]", "{}")
        key = f"{pick(chr(34) + 'k' + chr(34), *body.vars)}: " if left == "{" and rng.random() < 0.3 else ""
        return f"{left}{key}{body.term(depth + 1)} | {'; '.join(lines)}{right}"

    def cond(self, depth):
        kind = rng.random()
        if kind < 0.3:
            return self.ref()
        if kind < 0.6:
            if rng.random() < 0.3:
                # Of no two kinds of collections: they are ordered the other way round.
                return f"{self.term(depth)} {pick('<', '>=')} {pick('1', chr(34) + 'x' + chr(34), f'count({self.coll(depth)})')}"
            return f"{self.term(depth)} {pick('==', '!=')} {self.term(depth)}"
        if kind < 0.8:
            return f"{self.term(depth)} in {self.coll(depth)}"
        if kind < 0.9:
            return f"({self.term(depth)} in {self.coll(depth)}) == {pick('true', 'false')}"
        return f"{self.term(depth)} = {self.term(depth)}"

    def statement(self, depth):
        kind = rng.random()
        if kind < 0.25:
            term, name = self.term(depth), self.name()
            self.vars.append(name)
            return f"{name} := {term}"
        if kind < 0.45:
            self.negated = True
            text = f"not {self.cond(depth)}"
            self.negated = False
            return text
        if kind < 0.57 and depth < 3:
            coll, name = self.coll(depth), self.name()
            self.vars.append(name)
            return f"some {name} in {coll}"
        if kind < 0.585 and depth < 3:
            a, b = self.name(), self.name()
            text = pick(f"some [{a}, {b}] in [[1, 2], [input.a, input.b], [3]]", f"some {{\"k\": {a}, \"z\": {b}}} in [{{\"k\": input.a, \"z\": 1}}, {{\"k\": 2}}]",
                        f"some {a}, [{b}] in {{\"x\": [1], \"y\": [input.a], \"k\": 5}}", f"some {a}, {b} in input.xs")
            self.vars.extend([a, b])
            return text
        if kind < 0.62 and depth < 3:
            coll, key, name = self.coll(depth), self.name(), self.name()
            self.vars.extend([key, name])
            return f"some {key}, {name} in {coll}"
        if kind < 0.72 and depth < 2:
            coll, body, name = self.coll(depth), self.inner(), self.name()
            body.vars.append(name)
            if rng.random() < 0.4:
                key = self.name()
                body.vars.append(key)
                lines = body.statements(rng.randint(1, 2), depth + 1) + [f"[{key}, {name}] != 7"]
                return f"every {key}, {name} in {coll} {{ {'; '.join(lines)} }}"
            lines = body.statements(rng.randint(1, 2), depth + 1) + [f"{name} != 7"]
            return f"every {name} in {coll} {{ {'; '.join(lines)} }}"
        if kind < 0.76 and depth < 2:
            name = self.name()
            base = pick("input.xs", "data.list", "input.o")
            self.vars.append(name)
            return f"{base}[{name}] == {self.term(depth)}"
        if kind < 0.78 and depth < 2 and not self.negated:
            name = self.name()
            one, other = pick(("input.xs", "data.list"), ("input.o", "data.names"), ("table", "input.o"), ("input.xs", "input.ys"))
            self.vars.append(name)
            return f"{one}[{name}] {pick('==', '!=')} {other}[{name}]"
        if kind < 0.79 and depth < 2:
            a, b = self.name(), self.name()
            term = f"{{\"k\": {self.term(depth)}, \"z\": {self.term(depth)}}}"
            self.vars.extend([a, b])
            return f"{{\"k\": {a}, \"z\": {b}}} {pick(':=', '=')} {term}"
        if kind < 0.82 and depth < 2:
            a, b = self.name(), self.name()
            term = f"[{self.term(depth)}, {self.term(depth)}]"
            self.vars.extend([a, b])
            return f"[{a}, {b}] {pick(':=', '=')} {term}"
        return self.cond(depth)

    def statements(self, count, depth=0):
        before = len(self.vars)
        lines = [self.statement(depth) for _ in range(count)]
        # OPA wants every variable to be used.
        return lines + ([f"[{', '.join(self.vars[before:])}] != 7"] if self.vars[before:] else [])


def body(functions=(), outer=()):
    one = Body(outer, functions)
    lines = one.statements(rng.randint(1, 4))
    return "\n".join(f"\t{line}" for line in lines), one


def module():
    text = ["package envoy.authz", "", "import rego.v1", ""]
    if rng.random() < 0.5:
        text.append(f"default inner := {pick('false', chr(34) + 'none' + chr(34))}")
    lines, one = body()
    text.append(f"helper := {one.term()} if {{\n{lines}\n}}")
    text.append("other if input.a == 1\n\nother if input.b == \"x\"")
    text.append("table[k] := v if some k, v in input.o")
    text.append("partial contains 1 if input.a\n\npartial contains x if some x in input.xs")
    for name in ("f", "g"):
        for at in range(rng.randint(1, 2)):
            args = pick("x, y", "_, y", "x, _", "1, y", "[x, _], y", "x, \"x\"", "_, _")
            known = [one for one in ("x", "y") if one in args.replace("\"x\"", "")]
            lines, one = body(outer=known)
            tail = f" else := {pick('0', 'false')}" if rng.random() < 0.2 else ""
            if rng.random() < 0.2:
                more, other = body(outer=known)
                tail = f" else := {other.term()} if {{\n{more}\n}}" + tail
            value = one.term() if rng.random() < 0.6 else "true"
            text.append(f"{name}({args}) := {value} if {{\n{lines}\n}}{tail}")
    for _ in range(rng.randint(1, 2)):
        lines, one = body(functions=("f", "g"))
        value = one.term() if rng.random() < 0.3 else "true"
        tail = ""
        if rng.random() < 0.25:
            more, other = body(functions=("f", "g"))
            tail = f" else := {pick('true', 'false', other.term())} if {{\n{more}\n}}"
        text.append(f"inner := {value} if {{\n{lines}\n}}{tail}")
    calls = ", ".join(f"[x | x := {name}({one})]" for name in ("f", "g") for one in ("input.a, input.b", "1, \"x\"", "[input.a, 2], input.o", "input.xs, \"x\""))
    text.append(f"allow := {{\"inner\": [x | x := inner], \"helper\": [x | x := helper], \"partial\": partial, \"table\": [x | x := table], \"calls\": [{calls}]}}")
    return "\n\n".join(text) + "\n"


def maybe(value, chance=0.6):
    return {} if rng.random() > chance else value


def document():
    scalar = lambda: pick(1, 2, "x", "k", True, False, None)
    return {
        **maybe({"a": scalar()}), **maybe({"b": scalar()}),
        **maybe({"xs": [scalar() for _ in range(rng.randint(0, 3))]}), **maybe({"ys": [scalar()]}, 0.3),
        **maybe({"o": {**maybe({"k": scalar()}), **maybe({"x": scalar()}), **maybe({"m": maybe({"n": 1})})}}),
    }


def main():
    refused, rejected, compared, differ, loose, errors = 0, 0, 0, 0, 0, 0
    for at in range(COUNT):
        text = module()
        documents = [document() for _ in range(INPUTS)]
        lines = "".join(json.dumps(one) + "\n" for one in [{"module": text, "data": DATA}, *documents])
        done = subprocess.run([sys.argv[2]], input=lines, capture_output=True, text=True)
        with OpaEngine() as engine:
            try:
                engine.add_policy("policy.rego", text)
                engine.add_data(DATA)
                wanted = []
                for one in documents:
                    try:
                        wanted.append({"value": engine.eval_document("envoy.authz.allow", one)})
                    except OpaUndefinedError:
                        wanted.append({"undefined": True})
                    except OpaError as error:
                        if "eval" not in error.code and error.code != "panic":
                            raise
                        wanted.append({"error": True})
            except OpaError as error:
                rejected += 1
                loose += done.returncode == 0
                if "-v" in sys.argv:
                    print(f"OPA refuses: {error}")
                continue
        if done.returncode != 0:
            refused += 1
            if "-v" in sys.argv:
                print(done.stderr.strip()[-300:])
            continue
        for one, want, got in zip(documents, wanted, done.stdout.splitlines()):
            compared += 1
            got = json.loads(got)
            if got != want and "error" in [*got, *want]:
                errors += 1
            elif got != want:
                differ += 1
                print(f"--- policy {at}: OPA {want}, ours {got}, input {json.dumps(one)}\n{text}")
                break
    print(f"{COUNT} policies, seed {SEED}: {rejected} OPA refuses, {refused} only we do, {loose} only OPA does; "
          f"{compared} answers, {errors} an error on one side, {differ} policies differ")
    sys.exit(1 if differ else 0)


main()

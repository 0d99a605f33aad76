//! Compiled code against OPA's meaning, and against regorus' interpreter as a second opinion.
//!
//! Each case says what OPA answers. Where regorus' interpreter disagrees with OPA, the case says
//! so, so that an upgrade that changes it is noticed.

use regorus::{Engine, Value};
use serde_json::json;

use super::decision::RegoDenyReason;
use super::policy::{RegoOptions, RegoPolicy};

/// What a query gives.
#[derive(Clone, Debug, PartialEq)]
enum Answer {
    Json(serde_json::Value),
    Undefined,
    /// Evaluation ends with an error: no answer, so a denial.
    Error,
}

/// What is known of regorus' interpreter.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Interpreter {
    Agrees,
    Differs,
}

fn json_answer(value: &Value) -> Answer {
    if *value == Value::Undefined {
        return Answer::Undefined;
    }
    Answer::Json(serde_json::to_value(value).unwrap())
}

fn compiled(module: &str, input: &serde_json::Value) -> Answer {
    let options = RegoOptions::default().with_query("data.p.allow");
    let policy = RegoPolicy::compile(&[("p.rego", module)], None, options).unwrap();
    match policy.evaluate(Value::from(input.clone()), Value::from(5_u64)) {
        Ok(value) => json_answer(&value),
        Err(reason) => {
            assert_ne!(reason, RegoDenyReason::LimitExceeded, "{module}");
            Answer::Error
        }
    }
}

fn interpreted(module: &str, input: &serde_json::Value) -> Answer {
    let mut engine = Engine::new();
    engine.set_strict_builtin_errors(true);
    engine.add_policy("p.rego".to_owned(), module.to_owned()).unwrap();
    engine.set_input(Value::from(input.clone()));
    engine.eval_rule("data.p.allow".to_owned()).map_or(Answer::Error, |value| json_answer(&value))
}

fn check(body: &str, input: &serde_json::Value, opa: &Answer, interpreter: Interpreter) {
    let module = format!("package p\nimport rego.v1\n{body}\n");
    assert_eq!(&compiled(&module, input), opa, "{body}\n{input}");
    let agrees = interpreted(&module, input) == *opa;
    assert_eq!(agrees, interpreter == Interpreter::Agrees, "interpreter: {body}\n{input}");
}

/// Cases that OPA answers with a value, and the interpreter too.
#[test]
#[expect(clippy::too_many_lines, reason = "a table of cases")]
fn values_are_opas() {
    for (body, input, want) in [
        // Comprehensions whose condition fails, alone and in loops.
        ("allow := [1 | input.a == 2]", json!({"a": 1}), json!([])),
        ("allow if { not [1 | input.a == 2] == [1] }", json!({"a": 1}), json!(true)),
        (
            "allow if { some y in input.ys; a := [x | x := y; x > 5]; count(a) == 0 }",
            json!({"ys": [1, 2]}),
            json!(true),
        ),
        (
            "allow if { some y in input.ys; a := [x | some x in input.xs; x == y]; count(a) == 0 }",
            json!({"ys": [1, 2], "xs": [2, 3]}),
            json!(true),
        ),
        (
            "allow := [[1 | x == 2] | some x in input.xs]",
            json!({"xs": [1, 2, 3]}),
            json!([[], [1], []]),
        ),
        (
            "allow := [[y | some y in x; y > 1] | some x in input.xs]",
            json!({"xs": [[1, 2], [3]]}),
            json!([[2], [3]]),
        ),
        (
            "allow := [[[z | z := y; z > 1] | some y in x] | some x in input.xs]",
            json!({"xs": [[1, 2], [3]]}),
            json!([[[], [2]], [[3]]]),
        ),
        (
            "allow if { every x in input.xs { count([1 | x == 2]) >= 0 } }",
            json!({"xs": [1, 2, 3]}),
            json!(true),
        ),
        ("allow := [x | some x in input.xs; not x == 1]", json!({"xs": [1, 2]}), json!([2])),
        (
            "f(x) if x == 2\nallow := {y: z | some y in input.xs; z := [x | some x in input.xs; not f(x)]}",
            json!({"xs": ["a", 2]}),
            json!({"a": ["a"], "2": ["a"]}),
        ),
        (
            "allow := {x | some x in input.xs; count([y | some y in input.xs; y > x]) == 1}",
            json!({"xs": [1, 2, 3]}),
            json!([2]),
        ),
        ("allow := [x | x := input.xs[_]; x > 1]", json!({"xs": [1, 2]}), json!([2])),
        // Undefined elements are skipped.
        ("allow := count([input[k] | some k in [\"a\",\"b\"]])", json!({"a": 1}), json!(1)),
        ("allow := count({input[k] | some k in [\"a\",\"b\"]})", json!({"a": 1}), json!(1)),
        ("allow := count({k: input[k] | some k in [\"a\",\"b\"]})", json!({"a": 1}), json!(1)),
        // What is assigned must be defined.
        ("default allow := 0\nallow := 1 if { x := input.a; not x in [2] }", json!({}), json!(0)),
        (
            "default allow := 0\nallow := 1 if { x := input.a; not input.b[x] }",
            json!({"b": {}}),
            json!(0),
        ),
        (
            "default allow := 0\nallow := 1 if { x := input.a; y := input.b; not x == y }",
            json!({"a": 1}),
            json!(0),
        ),
        (
            "default allow := 0\nallow := 1 if { [x, y] := [input.a, input.b]; not x == y }",
            json!({"a": 1}),
            json!(0),
        ),
        (
            "default allow := 0\nallow := 1 if { x := {\"k\": input.a}; not x.k }",
            json!({}),
            json!(0),
        ),
        ("allow := count([1 | x := input.a])", json!({}), json!(0)),
        (
            "allow := count([x | some y in input.ys; x := input[y]])",
            json!({"ys": ["a", "ys"]}),
            json!(1),
        ),
        // The variable of `every` in brackets.
        (
            "default allow := 0\nallow := 1 if { every x in input.xs { input.o[x] } }",
            json!({"xs": ["a", "b"], "o": {"a": true}}),
            json!(0),
        ),
        (
            "default allow := 0\nallow := 1 if { every k, x in input.xs { input.o[k] == input.o[x] } }",
            json!({"xs": {"a": "b"}, "o": {"a": 1, "b": 2}}),
            json!(0),
        ),
        (
            "default allow := 0\nallow := 1 if { every x in input.xs { count([1 | input.o[x]]) == 1 } }",
            json!({"xs": ["b"], "o": {"a": true}}),
            json!(0),
        ),
        // The input is there, whatever was skipped before.
        (
            "default allow := 0\nallow := 1 if { every x in [] { x == input.a }; not input.b }",
            json!({"b": 1}),
            json!(0),
        ),
        (
            "allow := [count([y | some y in []; y == input.a]), input.b]",
            json!({"b": 1}),
            json!([0, 1]),
        ),
        (
            "default allow := 0\nallow := 1 if { not f([]); not input.b }\nf(xs) if { every x in xs { x == input.a }; input.c }",
            json!({"b": 1}),
            json!(0),
        ),
        (
            "allow := [1 in input.a, 2 in input.a, 1 in input.b]",
            json!({"a": {"k": 1}, "b": 5}),
            json!([true, false, false]),
        ),
        // Functions have all their arguments.
        ("f(_, y) := y\ndefault allow := 0\nallow := f(input.a, 1)", json!({}), json!(0)),
        (
            "f(_) := 1\nf(x) := 1 if x == 2\ndefault allow := 0\nallow := f(input.a)",
            json!({}),
            json!(0),
        ),
        ("f([_, y]) := y\nallow := f([1, input.a])", json!({"a": 2}), json!(2)),
        // Else after a body that gave nothing.
        ("allow := 1 if { some x in input.xs; x == 5 } else := 2", json!({"xs": [1]}), json!(2)),
        (
            "f(xs) := x if { some x in xs; x > 5 } else := 0\nallow := f(input.xs)",
            json!({"xs": [1]}),
            json!(0),
        ),
        ("allow := input.z if { input.xs } else := 3", json!({"xs": [1]}), json!(3)),
        (
            "allow := \"a\" if { input.x == 1 } else := \"b\" if { input.x == 2 } else := \"c\"",
            json!({"x": 2}),
            json!("b"),
        ),
        ("allow := false if { input.x == 2 } else := true", json!({"x": 2}), json!(false)),
        (
            "default allow := 7\nallow := 1 if { some x in input.xs; x == 9 }",
            json!({"xs": [1]}),
            json!(7),
        ),
        // Several definitions that agree, or of which one gives a value.
        (
            "f(x) := 1 if x == \"a\"\nf(x) := 2 if x == \"b\"\nf(\"c\") := 3\nallow := f(input.x)",
            json!({"x": "c"}),
            json!(3),
        ),
        (
            "f(x) := 1 if x == \"a\"\nf(x) := 2 if x == \"b\"\nf(\"c\") := 3\nallow := f(input.x)",
            json!({"x": "b"}),
            json!(2),
        ),
        (
            "r := x if { some x in input.xs }\nr := 2 if input.b\nallow := r",
            json!({"xs": [2, 2], "b": true}),
            json!(2),
        ),
        ("default r := 9\nr := 1 if input.a\nr := 2 if input.b\nallow := r", json!({}), json!(9)),
        (
            "r := false if input.a\nr := true if input.b\nallow if not r",
            json!({"a": 1}),
            json!(true),
        ),
        (
            "r := {\"n\": null} if input.a\nr := {} if input.b\nallow := r",
            json!({"a": 1}),
            json!({"n": null}),
        ),
        (
            "r := null if input.a\nr := 1 if input.b\nallow if r == null",
            json!({"a": 1}),
            json!(true),
        ),
        ("m if input.a == 1\nm if input.b == 2\nallow if m", json!({"b": 2}), json!(true)),
        (
            "f(xs) := x if { some x in xs; x > 1 }\nallow := f(input.xs)",
            json!({"xs": [1, 2]}),
            json!(2),
        ),
        (
            "f(x) := y if { y := x.k } else := z if { z := x.l }\nf(x) := 5 if x.m\nallow := f(input)",
            json!({"l": 4}),
            json!(4),
        ),
        // Loops, quantifiers, negation.
        ("allow if { some y in input.ys; not y == 1 }", json!({"ys": [1, 2]}), json!(true)),
        (
            "allow if { some y in input.ys; every x in y { x > 1 } }",
            json!({"ys": [[1, 2], [3]]}),
            json!(true),
        ),
        (
            "allow if { every y in input.ys { some x in y; x > 1 } }",
            json!({"ys": [[1, 2], [3]]}),
            json!(true),
        ),
        (
            "allow if { not bad }\nbad if { every y in input.ys { y > 1 } }",
            json!({"ys": [1, 2]}),
            json!(true),
        ),
        ("allow if { every x in [] { x == 1 } }", json!({}), json!(true)),
        ("allow if { not input.a }", json!({}), json!(true)),
        ("allow if { not input.a == 1 }", json!({}), json!(true)),
        ("allow if { not input.a.b == input.c }", json!({"c": 1}), json!(true)),
        ("allow if { not input.o.k in {7} }", json!({"o": {"k": 1}}), json!(true)),
        (
            "allow if { some i; input.xs[i] == 2; input.ys[i] == 5 }",
            json!({"xs": [1, 2], "ys": [4, 5]}),
            json!(true),
        ),
        ("allow if { some x in input.xs; x.k == 1 }", json!({"xs": [{}, {"k": 1}]}), json!(true)),
        (
            "f(x) := x.k\nallow if { some x in input.xs; f(x) == 1 }",
            json!({"xs": [{}, {"k": 1}]}),
            json!(true),
        ),
        ("allow if { some x in input.xs; b := x == 2; b }", json!({"xs": [1, 2]}), json!(true)),
        (
            "s contains x if some x in input.xs\nallow if { some y in s; y == 2 }",
            json!({"xs": [1, 2]}),
            json!(true),
        ),
        (
            "s contains 1 if input.a\ns contains 2 if input.b\nallow := s",
            json!({"b": 1}),
            json!([2]),
        ),
        ("a[x] := y if { some x, y in input }\nallow := a.k", json!({"k": 5}), json!(5)),
        ("allow := {k | input[k] == 1}", json!({"a": 1, "b": 2}), json!(["a"])),
        ("users := {\"x\": {\"r\": 1}}\nallow := users[input.u].r", json!({"u": "x"}), json!(1)),
        ("allow if { [x, y] := input.a; x < y }", json!({"a": [1, 2]}), json!(true)),
        (
            "f(a) if { [x, y] := a }\nallow if { not f(input.a) }",
            json!({"a": [1, 2, 3]}),
            json!(true),
        ),
        ("allow if { {\"a\": x, \"b\": 2} = input; x == 1 }", json!({"a": 1, "b": 2}), json!(true)),
        ("allow if { 1 < \"a\" }", json!({}), json!(true)),
        ("allow if { input.n }", json!({"n": null}), json!(true)),
        ("allow := {1,2} & {2,3} | {9}", json!({}), json!([2, 9])),
        ("allow := {1,2} - {2}", json!({}), json!([1])),
        ("allow := 7 % 4 + 2 * 3 - 8 / 2", json!({}), json!(5)),
        ("allow := sprintf(\"%s-%d-%v\", [input.a, 3, [1]])", json!({"a": "x"}), json!("x-3-[1]")),
        ("allow := concat(\",\", [\"a\", \"b\"])", json!({}), json!("a,b")),
        ("allow := replace(\"a.b.c\", \".\", \"-\")", json!({}), json!("a-b-c")),
        (
            "allow if glob.match(\"/people/*\", [\"/\"], input.p)",
            json!({"p": "/people/7"}),
            json!(true),
        ),
        ("allow if regex.match(\"^/a/[0-9]+$\", input.p)", json!({"p": "/a/7"}), json!(true)),
        ("allow := object.get(input, [\"a\", \"b\"], 5)", json!({"a": {"b": 2}}), json!(2)),
    ] {
        check(body, &input, &Answer::Json(want), Interpreter::Agrees);
    }
}

/// Cases where OPA has no value.
#[test]
fn what_has_no_value_is_undefined() {
    for (body, input) in [
        ("allow if { every g in input.nope { g == 1 } }", json!({})),
        ("allow if { every g in input.n { g == 1 } }", json!({"n": null})),
        ("allow if { every x in input.xs { x.k == 1 } }", json!({"xs": [{}, {"k": 1}]})),
        ("allow if { every x in input.xs { count([1 | x == 2]) == 1 } }", json!({"xs": [1, 2]})),
        ("f(x) := x.k\nallow if { every x in input.xs { f(x) } }", json!({"xs": [{}, {"k": 1}]})),
        ("allow if { not [1 | input.a == 2] == [] }", json!({"a": 1})),
        ("allow := [1, input.z]", json!({})),
        ("allow if { some x in input.xs; x == 3 }", json!({"xs": [1, 2]})),
        ("allow if input.nothing", json!({})),
        ("r := 1 if input.a\nr := 2 if input.b\nallow if r", json!({})),
    ] {
        check(body, &input, &Answer::Undefined, Interpreter::Agrees);
    }
}

/// Errors of types and conflicts end evaluation, also under `not` and behind a default.
#[test]
fn sec_rego_7_errors_are_never_lost() {
    for (body, input) in [
        ("allow if { some x in input.xs; x + 1 == 2 }", json!({"xs": ["a", 1]})),
        ("bad if { input.xs + 1 == 2 }\nallow if not bad", json!({"xs": ["a"]})),
        ("bad if { input.xs - 1 == 2 }\nallow if not bad", json!({"xs": ["a"]})),
        ("bad if { input.xs * 1 == 2 }\nallow if not bad", json!({"xs": ["a"]})),
        ("bad if { 7.5 % input.x == 2 }\nallow if not bad", json!({"x": 2})),
        ("allow if { not 1 / input.x == 1 }", json!({"x": 0})),
        ("allow if { not 1 % input.x == 1 }", json!({"x": 0})),
        ("allow if { not startswith(input.x, \"a\") }", json!({"x": 5})),
        ("allow if { not to_number(input.x) == 5 }", json!({"x": "five"})),
        (
            "default allow := true\nallow := false if { startswith(input.x, \"a\") }",
            json!({"x": 5}),
        ),
        ("allow := x if { some x in input.xs }", json!({"xs": [1, 2]})),
        ("f(x) := 1 if x > 0\nf(x) := 2 if x > 1\nallow := f(2)", json!({})),
        ("f(x) := 1 if x > 0\nf(x) := 2 if x > 1\nallow if not f(2) == 1", json!({})),
        (
            "default allow := 9\nr := 1 if input.a\nr := 2 if input.b\nallow := 3 if not r == 1",
            json!({"a": true, "b": true}),
        ),
        ("o[k] := v if { some v in [1,2]; k := \"a\" }\nallow := o", json!({})),
        (
            "o[k] := 1 if { k := \"a\" }\no[k] := 2 if { k := \"a\" }\nallow if not o.a == 1",
            json!({}),
        ),
        ("allow := {k: v | some v in [1,2]; k := \"a\"}", json!({})),
    ] {
        check(body, &input, &Answer::Error, Interpreter::Agrees);
    }
}

/// Where compiled code is right and the interpreter is not.
#[test]
fn known_errors_of_the_interpreter() {
    for (body, input, want) in [
        (
            "s contains input[k] if some k in [\"a\",\"b\"]\nallow := count(s)",
            json!({"a": 1}),
            json!(1),
        ),
        (
            "o[k] := input[k] if some k in [\"a\",\"b\"]\nallow := o",
            json!({"a": 1}),
            json!({"a": 1}),
        ),
        // The operands of a negated call are evaluated before the negation.
        ("default allow := 0\nallow := 1 if { not input.a in [1] }", json!({}), json!(0)),
        ("default allow := 0\nallow := 1 if { not 1 in input.a }", json!({}), json!(0)),
        (
            "default allow := 0\nallow := 1 if { not startswith(input.a, \"x\") }",
            json!({}),
            json!(0),
        ),
        ("default allow := 0\nallow := 1 if { not input.a < 1 }", json!({}), json!(0)),
        ("default allow := 0\nallow := 1 if { not input.a + 1 == 2 }", json!({}), json!(0)),
        ("default allow := 0\nallow := 1 if { not [input.a] == [1] }", json!({}), json!(0)),
        ("default allow := 0\nallow := 1 if { not input.b[input.a] }", json!({"b": {}}), json!(0)),
        (
            "default allow := 0\nallow := 1 if { not input.b[input.a] == 1 }",
            json!({"b": {}}),
            json!(0),
        ),
        (
            "f(x) if x == 1\ndefault allow := 0\nallow := 1 if { not f(input.a) }",
            json!({}),
            json!(0),
        ),
        ("f(_) := 1\ndefault allow := 0\nallow := 1 if { not f(input.a) }", json!({}), json!(0)),
        // The variable of `every` in an equation.
        (
            "default allow := 0\nallow := 1 if { every x in [1, 2] { input.a = x } }",
            json!({"a": 1}),
            json!(0),
        ),
        (
            "allow := 1 if { every x in input.xs { [1, y] = [input.o[x], x]; y == x } }",
            json!({"xs": ["a"], "o": {"a": 1}}),
            json!(1),
        ),
        // Another variable of the same name.
        (
            "allow if { every x in input.xs { input.o[x] == x; count([1 | some x in [\"b\"]; input.o[x] == 2]) == 1 } }",
            json!({"xs": ["a"], "o": {"a": "a", "b": 2}}),
            json!(true),
        ),
        // Undefined is in nothing, and not in nothing either.
        ("default allow := 0\nallow := 1 if { (input.a in [1]) == false }", json!({}), json!(0)),
        ("default allow := 0\nallow := 1 if { (1 in input.a) == false }", json!({}), json!(0)),
        (
            "default allow := 0\nallow := 1 if { x := 1 in input.a; x == false }",
            json!({}),
            json!(0),
        ),
    ] {
        check(body, &input, &Answer::Json(want), Interpreter::Differs);
    }
}

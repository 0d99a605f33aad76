//! Grafana's dashboard asks for what is there: every metric in it is one of the library's, and every
//! label is one of that metric's.

use std::collections::BTreeSet;

use mesh_tower::{Metric, MetricKind, Telemetry};
use serde_json::Value;

const DASHBOARD: &str = include_str!("../grafana/mesh.json");

/// What Prometheus adds to whatever it scrapes.
const TARGET: &[&str] = &["job", "instance"];

/// Words of PromQL that are no metrics. Functions are told by the parenthesis behind them.
const WORDS: &[&str] =
    &["by", "without", "on", "ignoring", "and", "or", "unless", "bool", "offset"];

/// A piece of PromQL.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Token<'q> {
    Word(&'q str),
    Text,
    Sign(char),
}

fn tokens(query: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut rest = query;
    while let Some(first) = rest.chars().next() {
        let is_word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':' | '$' | '.');
        let length = if is_word(first) {
            let length = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
            tokens.push(Token::Word(&rest[..length]));
            length
        } else if first == '"' {
            tokens.push(Token::Text);
            rest[1..].find('"').expect("a text ends") + 2
        } else {
            tokens.push(Token::Sign(first));
            first.len_utf8()
        };
        if first.is_whitespace() {
            tokens.pop();
        }
        rest = &rest[length..];
    }
    tokens
}

/// The metric of this name, and whether it is a histogram's buckets.
fn metric(name: &str) -> Option<(&'static Metric, bool)> {
    let found = |wanted: &str, histogram: bool| {
        Telemetry::catalog()
            .iter()
            .find(|one| one.name == wanted && (one.kind == MetricKind::Histogram) == histogram)
    };
    let part = |end: &str| name.strip_suffix(end).and_then(|name| found(name, true));
    found(name, false)
        .or_else(|| part("_sum"))
        .or_else(|| part("_count"))
        .map(|metric| (metric, false))
        .or_else(|| part("_bucket").map(|metric| (metric, true)))
}

/// Labels between a parenthesis or brace and its end, as far as names of labels stand there.
fn labels<'q>(tokens: &[Token<'q>], close: char) -> Vec<&'q str> {
    let inside = tokens.iter().take_while(|token| **token != Token::Sign(close));
    let mut before = Token::Sign(',');
    let mut labels = Vec::new();
    for token in inside {
        if let (Token::Sign(',' | '{' | '('), Token::Word(label)) = (before, *token) {
            labels.push(label);
        }
        before = *token;
    }
    labels
}

/// What is wrong with a query; `shown` are the labels that its legend shows.
fn problems(query: &str, shown: &[&str]) -> Vec<String> {
    let tokens = tokens(query);
    let mut wrong = Vec::new();
    let mut metrics = Vec::new();
    let mut grouped = Vec::new();
    let mut at = 0;
    while let Some(token) = tokens.get(at) {
        let next = tokens.get(at + 1).copied();
        at += 1;
        let Token::Word(word) = *token else { continue };
        let is_number = word.starts_with(|c: char| c.is_ascii_digit() || c == '$' || c == '.');
        if WORDS.contains(&word) {
            if next == Some(Token::Sign('(')) {
                grouped.extend(labels(&tokens[at..], ')'));
                at += tokens[at..].iter().position(|one| *one == Token::Sign(')')).unwrap();
            }
        } else if !is_number && next != Some(Token::Sign('(')) && !is_aggregate(&tokens, at) {
            let Some((metric, buckets)) = metric(word) else {
                wrong.push(format!("{word} is no metric"));
                continue;
            };
            let mut own: BTreeSet<&str> = metric.labels.iter().chain(TARGET).copied().collect();
            own.extend(buckets.then_some("le"));
            if next == Some(Token::Sign('{')) {
                let selected = labels(&tokens[at..], '}');
                let unknown = selected.iter().filter(|label| !own.contains(*label));
                wrong.extend(unknown.map(|label| format!("{word} has no label {label}")));
                at += tokens[at..].iter().position(|one| *one == Token::Sign('}')).unwrap();
            }
            metrics.push((word, own));
        }
    }
    if metrics.is_empty() {
        wrong.push("it asks for no metric".to_owned());
    }
    for (metric, own) in &metrics {
        let unknown = grouped.iter().chain(shown).filter(|label| !own.contains(*label));
        wrong.extend(unknown.map(|label| format!("{metric} has no label {label}")));
    }
    if tokens.contains(&Token::Word("by")) {
        let lost = shown.iter().filter(|label| !grouped.contains(label));
        wrong.extend(lost.map(|label| format!("{label} is shown, and summed over")));
    }
    wrong
}

/// `sum by (…) (…)`: the aggregate's name has its labels behind, not a parenthesis.
fn is_aggregate(tokens: &[Token<'_>], after: usize) -> bool {
    matches!(tokens.get(after), Some(Token::Word("by" | "without")))
}

/// The labels in a legend such as `{{response_code}}`.
fn legend(text: &str) -> Vec<&str> {
    text.split("{{").skip(1).filter_map(|rest| rest.split("}}").next()).map(str::trim).collect()
}

/// Every query of the dashboard with its place and legend.
fn queries(dashboard: &Value) -> Vec<(String, String, String)> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let mut all = Vec::new();
    for panel in dashboard["panels"].as_array().expect("panels") {
        let title = text(&panel["title"]);
        let targets = panel["targets"].as_array().map(Vec::as_slice).unwrap_or_default();
        assert_eq!(targets.is_empty(), panel["type"] == "row", "{title}");
        for target in targets {
            all.push((title.clone(), text(&target["expr"]), text(&target["legendFormat"])));
        }
    }
    for note in dashboard["annotations"]["list"].as_array().expect("annotations") {
        all.push((text(&note["name"]), text(&note["expr"]), text(&note["textFormat"])));
    }
    for variable in dashboard["templating"]["list"].as_array().expect("variables") {
        let query = text(&variable["query"]["query"]);
        if let Some(inside) = query.strip_prefix("label_values(") {
            let (query, label) = inside.trim_end_matches(')').rsplit_once(", ").expect("a label");
            all.push((text(&variable["name"]), query.to_owned(), format!("{{{{{label}}}}}")));
        }
    }
    all
}

#[test]
fn the_dashboard_asks_for_what_is_there() {
    let dashboard: Value = serde_json::from_str(DASHBOARD).expect("JSON");
    let mut wrong = Vec::new();
    let mut asked = BTreeSet::new();
    let all = queries(&dashboard);
    for (place, query, shown) in &all {
        let found = problems(query, &legend(shown));
        wrong.extend(found.iter().map(|problem| format!("{place}: {problem}: {query}")));
        let words = tokens(query).into_iter().filter_map(|token| match token {
            Token::Word(word) => metric(word).map(|(metric, _)| metric.name),
            Token::Text | Token::Sign(_) => None,
        });
        asked.extend(words);
    }
    println!("{} queries, {} metrics", all.len(), asked.len());
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let listed: BTreeSet<&str> = Telemetry::catalog().iter().map(|one| one.name).collect();
    let unseen: Vec<&&str> = listed.difference(&asked).collect();
    assert!(unseen.is_empty(), "metrics that no panel shows: {unseen:?}");
    let ids: BTreeSet<u64> = dashboard["panels"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|one| one["id"].as_u64())
        .collect();
    assert_eq!(ids.len(), dashboard["panels"].as_array().unwrap().len(), "ids are unique");
}

/// The check finds what it is for.
#[test]
fn a_wrong_query_is_found() {
    for (query, shown, want) in [
        ("istio_request_total", "", "istio_request_total is no metric"),
        ("rate(mesh_handshakes_total{reason=\"tls\"}[5m])", "", "has no label reason"),
        ("sum by (rule) (rate(mesh_decisions_total[5m]))", "", "has no label rule"),
        ("sum by (le) (rate(mesh_handshakes_total[5m]))", "", "has no label le"),
        ("mesh_decision_duration_seconds", "", "is no metric"),
        ("mesh_handshakes_total_bucket", "", "is no metric"),
        ("sum by (reason) (mesh_decisions_total)", "decision", "is shown, and summed over"),
        ("mesh_jwks_usable", "peer", "has no label peer"),
        (
            "sum(istio_tcp_sent_bytes_total{response_code=\"200\"})",
            "",
            "has no label response_code",
        ),
        ("time() - 5", "", "it asks for no metric"),
    ] {
        let found = problems(query, &if shown.is_empty() { vec![] } else { vec![shown] });
        assert!(found.iter().any(|one| one.contains(want)), "{query}: {found:?}");
    }
    let good =
        "sum by (reason) (rate(mesh_decisions_total{decision=\"deny\", job=~\"$job\"}[5m])) > 0";
    assert_eq!(problems(good, &["reason"]), Vec::<String>::new());
}

//! The page: one document without script or anything from elsewhere.

use std::fmt::Write as _;
use std::time::SystemTime;

use super::state::State;
use crate::observe::{system_time, timestamp};

const STYLE: &str = include_str!("page.css");

/// Nothing may be loaded or run but the one style, which is named by its digest.
pub(super) fn content_security_policy() -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, STYLE.as_bytes());
    let digest = base64(digest.as_ref());
    format!(
        "default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'; \
         frame-ancestors 'none'"
    )
}

/// The page as a person sees it.
pub(super) fn html(state: &State) -> String {
    let mut out = Page(String::with_capacity(16 * 1024));
    out.raw("<!doctype html><html lang=\"en\"><head><meta charset=\"utf-8\">");
    out.raw("<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\"><title>");
    out.text(&state.identity);
    out.raw("</title><style>");
    out.raw(STYLE);
    out.raw("</style></head><body><main>");
    head(&mut out, state);
    tiles(&mut out, state);
    policies(&mut out, state);
    callers(&mut out, state);
    certificates(&mut out, state);
    key_sets(&mut out, state);
    refused(&mut out, state);
    out.raw("</main></body></html>\n");
    out.0
}

/// What is written into it is either ours or escaped.
struct Page(String);

impl Page {
    fn raw(&mut self, text: &str) {
        self.0.push_str(text);
    }

    /// Shows a text whatever is in it; control characters are shown as such.
    fn text(&mut self, text: &str) {
        for c in text.chars() {
            match c {
                '&' => self.raw("&amp;"),
                '<' => self.raw("&lt;"),
                '>' => self.raw("&gt;"),
                '"' => self.raw("&quot;"),
                '\'' => self.raw("&#39;"),
                '\n' => self.0.push('\n'),
                c if c.is_control() || is_bidi(c) => {
                    // Writing to a string cannot fail.
                    write!(self.0, "{}", c.escape_default()).ok();
                }
                c => self.0.push(c),
            }
        }
    }

    /// An element of ours around a text.
    fn element(&mut self, open: &str, text: &str, close: &str) {
        self.raw(open);
        self.text(text);
        self.raw(close);
    }

    fn pill(&mut self, class: &str, text: &str) {
        self.raw("<span class=\"pill ");
        self.raw(class);
        self.element("\">", text, "</span>");
    }

    /// A cell that says what it is where there is no room for the head of its column.
    fn cell(&mut self, name: &str, text: &str) {
        self.named(name, "");
        self.element("", text, "</td>");
    }

    fn number(&mut self, name: &str, number: u64) {
        self.named(name, " class=\"n\"");
        self.element("", &grouped(number), "</td>");
    }

    /// The begin of such a cell.
    fn named(&mut self, name: &str, class: &str) {
        self.element("<td data-k=\"", name, "\"");
        self.raw(class);
        self.raw(">");
    }
}

/// Characters that change the order in which others are shown.
fn is_bidi(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn head(out: &mut Page, state: &State) {
    out.raw("<header>");
    out.element("<h1>", &state.identity, "</h1>");
    match &state.not_ready {
        None => out.pill("ok", "ready"),
        Some(_) => out.pill("bad", "not ready"),
    }
    out.raw("<div class=\"sub\">");
    out.text(&format!("Configuration {} · {}", state.generation, in_seconds(state.now)));
    out.raw("</div><nav><a href=\"/status.json\">status.json</a><a href=\"/metrics\">metrics</a>");
    out.raw("<a href=\"/readyz\">readyz</a></nav></header>");
    for problem in state.not_ready.iter().chain(&state.problems) {
        out.element("<p class=\"problem\">", problem, "</p>");
    }
}

fn tiles(out: &mut Page, state: &State) {
    let micros = state.decision_nanos / 1_000;
    let tenths = state.decision_nanos / 100 % 10;
    let tiles = [
        (grouped(state.allowed), "requests admitted"),
        (grouped(state.denied), "requests refused"),
        (format!("{micros}.{tenths} µs"), "to decide, on average"),
        (grouped(state.refused_connections), "connections refused"),
        (grouped(state.refused_configurations), "configurations refused"),
    ];
    out.raw("<div class=\"tiles\">");
    for (value, name) in tiles {
        out.element("<div class=\"tile\"><b>", &value, "</b>");
        out.element("<span>", name, "</span></div>");
    }
    out.raw("</div>");
}

fn policies(out: &mut Page, state: &State) {
    out.raw("<h2>Policies in force</h2><div class=\"card\">");
    if state.policies.is_empty() {
        out.raw("<p class=\"empty\">No AuthorizationPolicy applies: everything is allowed.</p>");
    } else {
        out.raw("<table><tr><th>Action</th><th>Policy</th><th>Decisions of each rule</th>");
        out.raw("<th class=\"n\">Decisions</th></tr>");
    }
    for policy in &state.policies {
        out.raw("<tr><td>");
        let class = match policy.action {
            "ALLOW" => "ok",
            "DENY" => "bad",
            "AUDIT" => "plain",
            _ => "warn",
        };
        out.pill(class, policy.action);
        if policy.dry_run {
            out.raw(" ");
            out.pill("plain", "dry run");
        }
        out.element("</td><td>", &policy.namespace, "<span class=\"dim\">/</span>");
        out.text(&policy.name);
        out.raw("</td><td>");
        if policy.rules.is_empty() {
            out.raw("<span class=\"dim\">no rule: nothing matches</span>");
        }
        for (at, (_, hits)) in policy.rules.iter().enumerate() {
            let separator = if at == 0 { "" } else { " · " };
            out.element("<span class=\"dim\">", &format!("{separator}rule {at}: "), "</span>");
            out.text(&grouped(*hits));
        }
        out.raw("</td>");
        out.number("decisions", policy.hits());
        out.raw("</tr>");
    }
    if !state.policies.is_empty() {
        out.raw("</table>");
    }
    out.raw("</div>");
}

fn callers(out: &mut Page, state: &State) {
    if state.callers.is_empty() {
        return;
    }
    out.raw("<h2>Callers</h2><div class=\"card\"><table><tr><th>Connection</th><th>Caller</th>");
    out.raw("<th>Answers by code</th><th class=\"n\">Requests</th></tr>");
    for one in &state.callers {
        out.raw("<tr><td>");
        let is_proven = one.security == "mutual_tls";
        out.pill(if is_proven { "ok" } else { "plain" }, if is_proven { "mTLS" } else { "plain" });
        out.element("</td><td><code>", one.source.as_deref().unwrap_or("unknown"), "</code></td>");
        out.named("answers", "");
        for (code, count) in &one.codes {
            let class = match code {
                100..400 => "ok",
                400..500 => "warn",
                _ => "bad",
            };
            let shown = if *code == 0 { "left".to_owned() } else { code.to_string() };
            out.pill(class, &shown);
            out.element(" ", &grouped(*count), " ");
        }
        out.raw("</td>");
        out.number("requests", one.requests());
        out.raw("</tr>");
    }
    out.raw("</table></div>");
}

fn certificates(out: &mut Page, state: &State) {
    out.raw("<h2>Certificates</h2><div class=\"card\"><table><tr><th>Kind</th><th>Name</th>");
    out.raw("<th>Ends</th><th>Life left</th></tr>");
    for one in &state.certificates {
        out.raw("<tr><td>");
        out.pill("plain", one.kind);
        out.element("</td><td><code>", &one.name, "</code></td>");
        let ends = system_time(one.not_after);
        out.named("ends", "");
        out.element("", &in_seconds(ends), " <span class=\"dim\">");
        out.text(&from_now(state.now, ends));
        out.raw("</span></td>");
        out.named("left", "");
        if one.withdrawn {
            out.pill("bad", "withdrawn");
        } else if one.left == 0 {
            out.pill("bad", "expired");
        } else {
            let left = one.left.to_string();
            out.raw("<meter min=\"0\" max=\"100\" low=\"10\" optimum=\"100\" value=\"");
            out.element("", &left, "\"></meter> ");
            out.element("<span class=\"dim\">", &left, " %</span>");
        }
        out.raw("</td></tr>");
    }
    out.raw("</table></div>");
}

fn key_sets(out: &mut Page, state: &State) {
    if state.key_sets.is_empty() {
        return;
    }
    out.raw("<h2>Key sets</h2><div class=\"card\"><table><tr><th>State</th><th>Source</th>");
    out.raw("<th>Fetched</th><th class=\"n\">Failures</th></tr>");
    for one in &state.key_sets {
        out.raw("<tr><td>");
        let class = match one.state {
            "fresh" => "ok",
            "stale" => "warn",
            _ => "bad",
        };
        out.pill(class, one.state);
        out.element("</td><td><code>", &one.source, "</code></td>");
        let age = one.age.map_or_else(|| "never".to_owned(), |age| format!("{} ago", span(age)));
        out.cell("fetched", &age);
        out.number("failures", u64::from(one.failures));
        out.raw("</tr>");
    }
    out.raw("</table></div>");
}

fn refused(out: &mut Page, state: &State) {
    out.raw("<h2>Recent refusals</h2><div class=\"card\">");
    if state.refused.is_empty() {
        out.raw("<p class=\"empty\">None since this page was first served.</p>");
    }
    for (at, one) in state.refused.iter().enumerate() {
        out.raw(if at == 0 { "<details open><summary>" } else { "<details><summary>" });
        out.element("<span class=\"path\"><code>", &one.method, " ");
        out.text(&one.path);
        out.element("</code></span><span>", one.peer.as_deref().unwrap_or("no peer"), "</span>");
        if let Some(user) = &one.user {
            out.element("<span>", user, "</span>");
        }
        let time = format!("{} · configuration {}", in_seconds(one.time), one.generation);
        out.element("<span class=\"dim\">", &time, "</span></summary>");
        out.element("<p><code>", &one.reason, "</code></p>");
        if let Some(explanation) = &one.explanation {
            out.element("<pre>", explanation, "</pre>");
        }
        out.raw("</details>");
    }
    out.raw("</div>");
}

/// Thousands apart.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut shown = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && digits.len().saturating_sub(at).checked_rem(3) == Some(0) {
            shown.push('\u{202f}');
        }
        shown.push(digit);
    }
    shown
}

/// A time as a person reads it: `2026-01-31 12:00:00 UTC`.
fn in_seconds(time: SystemTime) -> String {
    let shown = timestamp(time);
    let (day, clock) = shown.split_once('T').unwrap_or((&shown, ""));
    format!("{day} {} UTC", clock.split('.').next().unwrap_or_default())
}

fn from_now(now: SystemTime, then: SystemTime) -> String {
    match then.duration_since(now) {
        Ok(left) => format!("in {}", span(left.as_secs())),
        Err(past) => format!("{} ago", span(past.duration().as_secs())),
    }
}

fn span(seconds: u64) -> String {
    match seconds {
        0..120 => format!("{seconds} s"),
        120..7_200 => format!("{} min", seconds / 60),
        7_200..172_800 => format!("{} h", seconds / 3_600),
        _ => format!("{} days", seconds / 86_400),
    }
}

/// Base64 of a digest, for the policy.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let [a, b, c] = [0, 1, 2].map(|at| u32::from(chunk.get(at).copied().unwrap_or_default()));
        let group = (a << 16) | (b << 8) | c;
        for (at, shift) in [18, 12, 6, 0].into_iter().enumerate() {
            let place = usize::try_from((group >> shift) & 63).unwrap_or_default();
            let is_padding = at > chunk.len();
            let digit = ALPHABET.get(place).copied().filter(|_| !is_padding);
            text.push(digit.map_or('=', char::from));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use rustls::pki_types::UnixTime;

    use super::super::recent::Refused;
    use super::super::state::{Caller, Certificate, Keys, Policy};
    use super::*;

    #[test]
    fn texts_are_escaped() {
        let mut page = Page(String::new());
        page.text("<script>\"'&\u{202e}\u{7}\n");
        assert_eq!(page.0, "&lt;script&gt;&quot;&#39;&amp;\\u{202e}\\u{7}\n");
    }

    /// A state whose every text is hostile.
    fn hostile(text: &str) -> State {
        let text = || text.to_owned();
        let time = UnixTime::since_unix_epoch(std::time::Duration::from_secs(1));
        State {
            now: SystemTime::UNIX_EPOCH,
            identity: text(),
            generation: 1,
            not_ready: Some(text()),
            problems: vec![text()],
            allowed: 1,
            denied: 2,
            decision_nanos: 3,
            refused_connections: 4,
            refused_configurations: 5,
            callers: vec![Caller {
                source: Some(text()),
                security: "mutual_tls",
                codes: vec![(200, 1), (403, 1), (0, 1)],
            }],
            policies: vec![Policy {
                namespace: text(),
                name: text(),
                action: "DENY",
                dry_run: true,
                rules: vec![(text(), 1)],
            }],
            certificates: vec![Certificate {
                kind: "own",
                name: text(),
                not_before: time,
                not_after: time,
                left: 50,
                withdrawn: false,
            }],
            key_sets: vec![Keys { source: text(), state: "fresh", age: Some(1), failures: 1 }],
            refused: vec![Refused {
                time: SystemTime::UNIX_EPOCH,
                generation: 1,
                method: text(),
                path: text(),
                peer: Some(text()),
                user: Some(text()),
                reason: text(),
                explanation: Some(text()),
            }],
        }
    }

    /// [SEC-AUTHZ-12] Whatever a text is, the page has the same elements, and nothing in it is loaded from
    /// anywhere.
    #[test]
    fn sec_authz_12_no_text_becomes_markup() {
        let elements = |html: &str| html.matches('<').count();
        let plain = html(&hostile("plain"));
        for text in [
            "<script>alert(1)</script>",
            "</code></table><img src=//evil.example/x onerror=alert(1)>",
            "\"><svg onload=alert(1)>",
            "' style='background:url(//evil.example)'",
            "&lt;b&gt;",
            "\u{202e}gnp.exe\u{0}\u{7f}",
            "<!--",
        ] {
            let page = html(&hostile(text));
            assert_eq!(elements(&page), elements(&plain), "{text}");
            assert_eq!(page.matches("=\"").count(), plain.matches("=\"").count(), "{text}");
            assert!(!page.contains('\u{202e}') && !page.contains('\0'), "{text}");
        }
        for external in
            ["<script", "<link", "<img", "<iframe", "<form", " src=", "url(", "@import", "//"]
        {
            assert!(!plain.contains(external), "{external}");
        }
        let links: Vec<&str> =
            plain.split("href=\"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        assert_eq!(links, ["/status.json", "/metrics", "/readyz"]);
    }

    #[test]
    fn digests_are_written_as_browsers_read_them() {
        for (bytes, want) in [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v")] {
            assert_eq!(base64(bytes.as_bytes()), want);
        }
        assert_eq!(grouped(1_234_567), "1\u{202f}234\u{202f}567");
    }
}

//! [SEC-OPS-4] Secrets appear nowhere: not in logs, metrics, traces, errors, `Debug` or answers.

use std::fmt::{self, Write as _};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::Extension;
use axum::routing::get as get_route;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use mesh_tower::{AccessEntry, AccessLog, AuditLog, ConnectionEvent, DecisionEvent, Observer};
use mesh_tower::{Clock as _, Permit, SystemClock};
use ring::hmac;

use crate::logs::Written;
use crate::support::{authority, svid, trust};
use crate::{HOUR, ask, ask_plain, bind, connector, done, get, mesh};

/// Shared by the issuer and us: whoever reads it mints tokens.
const SHARED: &str = "hmac-secret-0123456789abcdef0123456789abcdef";

/// What clients send and nobody else may see.
const BASIC: &str = "opaque-basic-credentials";
const SESSION: &str = "opaque-session-cookie";
const TICKET: &str = "opaque-ticket-in-the-query";
const ACCESS: &str = "opaque-access-token-in-the-query";
const HEADER: &str = "opaque-api-key-in-a-header";
const BODY: &str = "opaque-words-of-the-service";

/// Everything that `tracing` says at any level, in all crates, spans and their fields included.
#[derive(Clone, Default)]
struct Trace(Arc<Mutex<String>>);

struct Fields<'t>(&'t mut String);

impl tracing::field::Visit for Fields<'_> {
    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn fmt::Debug) {
        write!(self.0, " {field}={value:?}").unwrap();
    }
}

impl tracing::Subscriber for Trace {
    fn enabled(&self, _: &tracing::Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, span: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        let mut text = self.0.lock().unwrap();
        text.push_str(span.metadata().name());
        span.record(&mut Fields(&mut text));
        text.push('\n');
        tracing::span::Id::from_u64(1)
    }
    fn record(&self, _: &tracing::span::Id, values: &tracing::span::Record<'_>) {
        values.record(&mut Fields(&mut self.0.lock().unwrap()));
    }
    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}
    fn event(&self, event: &tracing::Event<'_>) {
        let mut text = self.0.lock().unwrap();
        text.push_str(event.metadata().target());
        event.record(&mut Fields(&mut text));
        text.push('\n');
    }
    fn enter(&self, _: &tracing::span::Id) {}
    fn exit(&self, _: &tracing::span::Id) {}
}

/// Prints every event as a program's own observer may.
#[derive(Clone, Debug, Default)]
struct Printer(Written);

impl Observer for Printer {
    fn decided(&self, event: &DecisionEvent<'_>) {
        std::io::Write::write_all(&mut self.0.clone(), format!("{event:?}\n").as_bytes()).unwrap();
    }
    fn connection_refused(&self, event: &ConnectionEvent) {
        std::io::Write::write_all(&mut self.0.clone(), format!("{event:?}\n").as_bytes()).unwrap();
    }
    fn answered(&self, entry: &AccessEntry) {
        let shown = format!("{entry} {entry:?} {}\n", entry.to_json());
        std::io::Write::write_all(&mut self.0.clone(), shown.as_bytes()).unwrap();
    }
    fn wants_access_log(&self) -> bool {
        true
    }
}

/// A valid token, or one whose signature is another's.
fn token(subject: &str, is_forged: bool) -> String {
    let header = URL_SAFE_NO_PAD.encode("{\"alg\":\"HS256\",\"kid\":\"k\"}");
    let expires = SystemClock.now().as_secs() + 3600;
    let claims = format!("{{\"iss\":\"issuer\",\"sub\":\"{subject}\",\"exp\":{expires}}}");
    let text = format!("{header}.{}", URL_SAFE_NO_PAD.encode(claims));
    let key = if is_forged { "another" } else { SHARED };
    let key = hmac::Key::new(hmac::HMAC_SHA256, key.as_bytes());
    let signature = hmac::sign(&key, text.as_bytes());
    format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
}

fn policies() -> String {
    let key = URL_SAFE_NO_PAD.encode(SHARED);
    format!(
        "
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata: {{name: tokens, namespace: shop}}
spec:
  jwtRules:
  - issuer: issuer
    fromHeaders: [{{name: authorization, prefix: 'Bearer '}}, {{name: x-jwt}}]
    fromParams: [ticket, access_token]
    fromCookies: [session]
    jwks: '{{\"keys\":[{{\"kty\":\"oct\",\"kid\":\"k\",\"alg\":\"HS256\",\"k\":\"{key}\"}}]}}'
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {{name: no-admin, namespace: shop}}
spec:
  action: DENY
  rules:
  - to: [{{operation: {{paths: ['/admin*']}}}}]
    when: [{{key: 'request.headers[x-api-key]', notValues: [nobody]}}]
"
    )
}

#[tokio::test]
async fn sec_ops_4_secrets_appear_nowhere() {
    let trace = Trace::default();
    tracing::subscriber::set_global_default(trace.clone()).unwrap();
    let authority = authority();
    let (access, json, audit) = (Written::default(), Written::default(), Written::default());
    let (printer, hook) = (Printer::default(), Written::default());
    let text_log = AccessLog::text(access.clone()).unwrap();
    let audit_log =
        AuditLog::new(audit.clone()).unwrap().admitted_one_in(std::num::NonZeroU64::MIN);
    let (observer, mut denied) = (Arc::new(printer.clone()), hook.clone());
    let denied = Mutex::new(move |text: String| {
        std::io::Write::write_all(&mut denied, text.as_bytes()).unwrap();
    });
    let first = mesh(&authority, &policies(), |builder| {
        builder.access_log(text_log).audit_log(audit_log).observer(observer).on_denial(
            move |denial| {
                denied.lock().unwrap()(format!("{denial:?}\n"));
                None
            },
        )
    });
    let second = mesh(&authority, &policies(), |builder| {
        builder.access_log(AccessLog::json(json.clone()).unwrap())
    });
    let permits = Written::default();
    let mut answers = String::new();
    let mut sent = vec![
        SHARED.to_owned(),
        BASIC.to_owned(),
        SESSION.to_owned(),
        TICKET.to_owned(),
        ACCESS.to_owned(),
        HEADER.to_owned(),
        BODY.to_owned(),
    ];
    for mesh in [&first, &second] {
        let (listener, address) = bind().await;
        let (serving, shown) = (mesh.clone(), permits.clone());
        let handler = move |permit: Option<Extension<Permit>>| {
            let mut shown = shown.clone();
            async move {
                let text = format!("{permit:?} {:?}\n", permit.as_ref().map(|one| one.token()));
                std::io::Write::write_all(&mut shown, text.as_bytes()).unwrap();
                BODY
            }
        };
        let app = Router::new().fallback(get_route(handler));
        tokio::spawn(async move { serving.serve(listener, app, std::future::pending()).await });
        let web = connector(&authority, "web", address);
        for (at, is_forged) in [(0, false), (1, true)] {
            let token = token(&format!("user-{at}"), is_forged);
            let requests = [
                get("/a").header("authorization", format!("Bearer {token}")),
                get("/a").header("authorization", format!("bearer {token}")),
                get("/a").header("authorization", format!("Basic {BASIC}")),
                get("/a").header("authorization", format!("{token},{token}")),
                get("/a").header("x-jwt", &token),
                get("/a").header("cookie", format!("session={token}; other={SESSION}")),
                get("/a").header("cookie", format!("session={SESSION}")),
                get(&format!("/a?ticket={token}&x=1")),
                get(&format!("/a?ticket={TICKET}")),
                get(&format!("/a?access_token={ACCESS}&y")),
                get(&format!("/a?unknown={token}")),
                get(&format!("/reset/{token}")),
                get("/a").header("user-agent", &token).header("x-request-id", &token),
                get("/a").header("x-forwarded-for", &token),
                get("/admin").header("x-api-key", HEADER),
                get(&format!("/admin/{token}")).header("authorization", format!("Basic {BASIC}")),
                get("/a\\..").header("cookie", format!("session={token}")).header("x-a", HEADER),
                get("/a").header("host", &token).header("x-jwt", TICKET),
            ];
            sent.extend(token.split('.').skip(1).map(str::to_owned));
            for request in requests {
                let request = done(request);
                let copy = done(http::request::Builder::new().uri(request.uri().clone()));
                let mut plain = copy;
                *plain.headers_mut() = request.headers().clone();
                let (status, body) = ask(&web, request).await;
                // What the service itself answers is its own business.
                if status != 200 {
                    answers.push_str(&body);
                }
                ask_plain(address, plain).await;
            }
        }
    }
    // Bad configuration that holds the secret is refused without showing it.
    let key = URL_SAFE_NO_PAD.encode(SHARED);
    let broken = policies().replace(&key, &format!("{key}\", \"k\": \"{key}")).replace("oct", "o");
    let refused = match mesh_tower::Policies::read([("broken.yaml", broken.as_str())], "shop") {
        Err(problems) => problems.to_string(),
        Ok(policies) => {
            first.set_policies(policies).map_or_else(|e| e.to_string(), |()| String::new())
        }
    };
    let private = svid(&authority, "server", HOUR);
    first.set_identity(Arc::clone(&private), trust(&[&authority])).unwrap();
    sent.push(STANDARD.encode(private.private_key().secret_der()));
    access.lines(60).await;
    json.lines(60).await;
    audit.lines(60).await;

    let debug = format!("{first:?} {second:?} {private:?} {:?} {authority:?}", first.telemetry());
    let places = [
        ("access log, text", access.text()),
        ("access log, JSON", json.text()),
        ("audit log", audit.text()),
        ("observer", printer.0.text()),
        ("denial hook", hook.text()),
        ("metrics", first.telemetry().prometheus() + &second.telemetry().prometheus()),
        ("tracing", trace.0.lock().unwrap().clone()),
        ("permits", permits.text()),
        ("refusals", answers),
        ("configuration errors", refused),
        ("Debug", debug),
    ];
    for (place, text) in &places {
        assert!(!text.is_empty() || *place == "configuration errors", "{place} is empty");
        for secret in &sent {
            for (form, shape) in shapes(secret) {
                let at = text.find(&shape).map(|at| text.get(at.saturating_sub(200)..at + 20));
                assert!(at.is_none(), "{secret} as {form} in {place}: {at:?}");
            }
        }
    }
}

/// A secret as it is, and as somebody might have written its bytes.
fn shapes(secret: &str) -> [(&'static str, String); 5] {
    let hex: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
    // Without the last group, which depends on what follows.
    let mut base64 = STANDARD.encode(secret);
    base64.truncate(secret.len() / 3 * 4);
    let mut url = URL_SAFE_NO_PAD.encode(secret);
    url.truncate(secret.len() / 3 * 4);
    let bytes = format!("{:?}", secret.as_bytes());
    let bytes = bytes.trim_matches(['[', ']']).to_owned();
    [
        ("text", secret.to_owned()),
        ("hex", hex),
        ("base64", base64),
        ("base64url", url),
        ("a list of bytes", bytes),
    ]
}

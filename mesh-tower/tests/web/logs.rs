//! The access log in Istio's two forms, and the audit log.

use std::io::{self, Write};
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::routing::get as get_route;
use mesh_tower::{AccessLog, AuditLog};
use serde_json::Value;

use crate::support::authority;
use crate::{ask, ask_plain, bind, connector, done, get, mesh};

const POLICIES: &str = "
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: no-admin, namespace: shop}
spec:
  action: DENY
  rules: [{to: [{operation: {paths: [/admin]}}]}]
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: watched, namespace: shop}
spec:
  action: AUDIT
  rules: [{to: [{operation: {paths: [/watched]}}]}]
";

/// What was written, kept.
#[derive(Clone, Debug, Default)]
pub(crate) struct Written(Arc<Mutex<Vec<u8>>>);

impl Written {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    /// Waits until so many lines have been written.
    pub(crate) async fn lines(&self, count: usize) -> Vec<String> {
        for _ in 0..500 {
            if self.text().lines().count() >= count {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.text().lines().map(str::to_owned).collect()
    }
}

impl Write for Written {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn app() -> Router {
    let hello = || get_route(|| async { "hello" });
    Router::new().route("/hello", hello()).route("/watched", hello())
}

#[tokio::test]
async fn the_access_log_is_istios() {
    let (authority, text, json) = (authority(), Written::default(), Written::default());
    let mut servers = Vec::new();
    for log in [AccessLog::text(text.clone()).unwrap(), AccessLog::json(json.clone()).unwrap()] {
        let mesh = mesh(&authority, POLICIES, |builder| builder.access_log(log));
        let (listener, address) = bind().await;
        servers.push(address);
        tokio::spawn(async move { mesh.serve(listener, app(), std::future::pending()).await });
    }
    for address in &servers {
        let web = connector(&authority, "web", *address);
        let request = get("/x/../hello?a=1")
            .header("user-agent", "curl/8 \"x\"\\")
            .header("x-request-id", "7")
            .header("x-forwarded-for", "192.0.2.1");
        assert_eq!(ask(&web, done(request)).await.0, 200);
        assert_eq!(ask_plain(*address, done(get("/admin"))).await.0, 403);
    }
    let lines = text.lines(2).await;
    let [admitted, refused] = lines.as_slice() else { panic!("two lines: {lines:?}") };
    let (start, rest) = admitted.split_once("] ").unwrap();
    assert_eq!(start.len(), "[2026-11-25T18:00:00.123Z".len(), "{start}");
    let address = servers[0];
    let want = format!(
        "\"GET /x/../hello?a=1 HTTP/1.1\" 200 - via_upstream - \"-\" 0 5 D - \"192.0.2.1\" \
         \"curl/8 \\\"x\\\"\\\\\" \"7\" \"server\" \"-\" - - {address} PEER - -"
    );
    assert_eq!(without_chance(rest), want);
    let (_, rest) = refused.split_once("] ").unwrap();
    let want = format!(
        "\"GET /admin HTTP/1.1\" 403 - \
         rbac_access_denied_matched_policy[ns[shop]-policy[no-admin]-rule[0]] - \"-\" 0 19 D - \
         \"-\" \"-\" \"-\" \"server\" \"-\" - - {address} PEER - -"
    );
    assert_eq!(without_chance(rest), want);

    let lines = json.lines(2).await;
    let read: Vec<Value> = lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
    let [admitted, refused] = read.as_slice() else { panic!("two lines: {lines:?}") };
    let keys: Vec<&str> = admitted.as_object().unwrap().keys().map(String::as_str).collect();
    let mut want = [
        "start_time",
        "route_name",
        "method",
        "path",
        "protocol",
        "response_code",
        "response_flags",
        "response_code_details",
        "connection_termination_details",
        "bytes_received",
        "bytes_sent",
        "duration",
        "upstream_service_time",
        "x_forwarded_for",
        "user_agent",
        "request_id",
        "authority",
        "upstream_host",
        "upstream_cluster",
        "upstream_local_address",
        "downstream_local_address",
        "downstream_remote_address",
        "requested_server_name",
        "upstream_transport_failure_reason",
    ];
    want.sort_unstable();
    assert_eq!(keys, want);
    assert_eq!(admitted["path"], "/x/../hello?a=1");
    assert_eq!(admitted["user_agent"], "curl/8 \"x\"\\");
    assert_eq!(admitted["bytes_sent"], 5);
    assert_eq!(admitted["requested_server_name"], Value::Null);
    assert_eq!(refused["response_code"], 403);
}

/// The duration and the client's port are not known before.
fn without_chance(line: &str) -> String {
    let (head, tail) = line.split_once(" \"-\" 0 ").unwrap();
    let mut tail: Vec<&str> = tail.split(' ').collect();
    tail[1] = "D";
    let peer = tail.len() - 3;
    tail[peer] = "PEER";
    format!("{head} \"-\" 0 {}", tail.join(" "))
}

/// Sampling leaves refusals in.
#[tokio::test]
async fn sampling_never_hides_a_refusal() {
    let (authority, log) = (authority(), Written::default());
    let one_in = NonZeroU64::new(1000).unwrap();
    let access = AccessLog::text(log.clone()).unwrap().one_in(one_in);
    let mesh = mesh(&authority, POLICIES, |builder| builder.access_log(access));
    let (listener, address) = bind().await;
    tokio::spawn(async move { mesh.serve(listener, app(), std::future::pending()).await });
    for _ in 0..5 {
        ask_plain(address, done(get("/hello"))).await;
        ask_plain(address, done(get("/x/../admin"))).await;
    }
    let lines = log.lines(6).await;
    assert_eq!(lines.len(), 6, "{lines:?}");
    let refused =
        lines.iter().filter(|line| line.contains("/x/../admin") && line.contains(" 403 "));
    assert_eq!(refused.count(), 5, "{lines:?}");
}

/// Who was refused what, by which policy and rule; and what AUDIT policies ask for.
#[tokio::test]
async fn the_audit_log_names_policy_rule_and_reason() {
    let (authority, log) = (authority(), Written::default());
    let audit = AuditLog::new(log.clone()).unwrap();
    let mesh = mesh(&authority, POLICIES, |builder| builder.audit_log(audit));
    let (listener, address) = bind().await;
    tokio::spawn(async move { mesh.serve(listener, app(), std::future::pending()).await });
    let web = connector(&authority, "web", address);
    for path in ["/hello", "/watched", "/admin?secret=1"] {
        ask(&web, done(get(path))).await;
    }
    let lines = log.lines(2).await;
    assert_eq!(lines.len(), 2, "{lines:?}");
    let read = |at: usize| serde_json::from_str::<Value>(&lines[at]).unwrap();
    let (watched, refused) = (read(0), read(1));
    assert_eq!(watched["decision"], "allow");
    assert_eq!(watched["audit"], true);
    assert_eq!(watched["path"], "/watched");
    assert_eq!(refused["decision"], "deny");
    assert_eq!(refused["policy"], "shop/no-admin");
    assert_eq!(refused["rule"], "ns[shop]-policy[no-admin]-rule[0]");
    assert_eq!(
        refused["reason"],
        "rbac_access_denied_matched_policy[ns[shop]-policy[no-admin]-rule[0]]"
    );
    assert_eq!(refused["generation"], 1);
    assert_eq!(refused["peer"], "spiffe://cluster.local/ns/shop/sa/web");
    assert_eq!(refused["destination"], "spiffe://cluster.local/ns/shop/sa/server");
    assert_eq!(refused["method"], "GET");
    assert_eq!(refused["path"], "/admin");
    assert_eq!(refused["user"], Value::Null);
}

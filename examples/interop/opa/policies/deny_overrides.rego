package envoy.authz

import rego.v1

default allow := {"allowed": false, "http_status": 403}
deny contains "method" if input.attributes.request.http.method in {"DELETE", "PATCH"}
deny contains "path" if contains(input.attributes.request.http.path, "..")
deny contains sprintf("agent %s", [a]) if { a := lower(input.attributes.request.http.headers["user-agent"]); regex.match(`^(curl|wget)/`, a) }
allow := {"allowed": true, "response_headers_to_add": {"x-checked": "yes"}} if count(deny) == 0
allow := {"allowed": false, "http_status": 403, "body": concat("; ", sort([d | some d in deny]))} if count(deny) > 0

package envoy.authz

import rego.v1

default allow := {"allowed": false, "http_status": 401}
h := input.attributes.request.http.headers
allow := {"allowed": true, "headers": {"x-mac": substring(mac, 0, 16)}} if {
	mac := crypto.hmac.sha512(h["x-token"], input.attributes.request.http.method)
	startswith(mac, data.prefixes[_])
}

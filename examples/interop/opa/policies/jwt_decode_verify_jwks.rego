package envoy.authz

import rego.v1

default allow := {"allowed": false}
token := trim_prefix(input.attributes.request.http.headers.authorization, "Bearer ")
allow := {"allowed": v[0], "dynamic_metadata": {"claims": v[2], "header": v[1]}} if {
	v := io.jwt.decode_verify(token, {"cert": data.jwks, "time": 1700000000000000000})
}

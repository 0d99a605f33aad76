package envoy.authz

import rego.v1

default allow := false
token := trim_prefix(input.attributes.request.http.headers.authorization, "Bearer ")
allow if {
	io.jwt.verify_rs256(token, data.jwks)
	[_, payload, _] := io.jwt.decode(token)
	payload.role == "admin"
}

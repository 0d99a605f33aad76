package envoy.authz

import rego.v1

default allow := false
token := trim_prefix(input.attributes.request.http.headers.authorization, "Bearer ")
allow := {"allowed": true, "headers": {"x-alg": header.alg, "x-sig": sig}} if {
	[header, payload, sig] := io.jwt.decode(token)
	payload.role in ["admin", "guest"]
}

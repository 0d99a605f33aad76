package envoy.authz

import rego.v1

default allow := false
token := substring(input.attributes.request.http.headers.authorization, 7, -1) if startswith(input.attributes.request.http.headers.authorization, "Bearer ")
verified := io.jwt.decode_verify(token, {"secret": "topsecret", "alg": "HS256", "iss": "https://issuer.example", "time": 1700000000000000000})
allow := {"allowed": true, "headers": {"x-sub": verified[2].sub}} if verified[0]

package envoy.authz

import rego.v1

default allow := false
token := trim_prefix(input.attributes.request.http.headers.authorization, "Bearer ")
allow if io.jwt.verify_es256(token, data.ec_pem)
allow if io.jwt.verify_es256(token, data.jwks)

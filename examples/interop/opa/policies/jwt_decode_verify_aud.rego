package envoy.authz

import rego.v1

default allow := false
token := trim_prefix(input.attributes.request.http.headers.authorization, "Bearer ")
verified := io.jwt.decode_verify(token, {"secret": "topsecret", "aud": "shop", "time": 1700000000000000000})
allow if { verified[0]; verified[2].role == "admin" }

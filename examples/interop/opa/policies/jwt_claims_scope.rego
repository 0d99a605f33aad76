package envoy.authz

import rego.v1

default allow := false
claims := input.attributes.metadataContext.filterMetadata["envoy.filters.http.jwt_authn"].payload
scopes := split(claims.scope, " ") if is_string(claims.scope)
scopes := claims.scope if is_array(claims.scope)
needed := {"GET": "read", "POST": "write", "DELETE": "admin"}[input.attributes.request.http.method]
allow if needed in scopes
allow if "admin" in scopes

package envoy.authz

import rego.v1

default allow := false
claims := input.attributes.metadataContext.filterMetadata["envoy.filters.http.jwt_authn"].payload
rank(role) := {"guest": 1, "user": 2, "admin": 3}[role]
required := 3 if input.attributes.request.http.method == "DELETE"
else := 2 if input.attributes.request.http.method in {"POST", "PUT"}
else := 1
allow if rank(claims.role) >= required

package envoy.authz

import rego.v1

default allow := false
claims := input.attributes.metadataContext.filterMetadata["envoy.filters.http.jwt_authn"].payload
allow if data.directory[claims.id].active
allow := {"allowed": false, "http_status": 451} if data.directory[claims.id].blocked

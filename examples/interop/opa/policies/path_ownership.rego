package envoy.authz

import rego.v1

default allow := false
claims := input.attributes.metadataContext.filterMetadata["envoy.filters.http.jwt_authn"].payload
allow if {
	["users", owner] = array.slice(input.parsed_path, 0, 2)
	owner == claims.sub
}
allow if {
	input.parsed_path[0] == "public"
	not startswith(input.attributes.request.http.path, "/public/private")
}

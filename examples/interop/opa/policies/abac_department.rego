package envoy.authz

import rego.v1

default allow := false
claims := input.attributes.metadataContext.filterMetadata["envoy.filters.http.jwt_authn"].payload
user := data.users[claims.sub]
allow if {
	user.department == data.documents[input.parsed_path[1]].department
	user.clearance >= data.documents[input.parsed_path[1]].level
}
allow if user.title == "auditor"

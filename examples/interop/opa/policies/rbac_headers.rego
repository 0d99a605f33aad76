package envoy.authz

import rego.v1

default allow := {"allowed": false, "http_status": 403, "body": "no role"}
roles contains role if some role in data.users[claims.sub].roles
claims := input.attributes.metadataContext.filterMetadata["envoy.filters.http.jwt_authn"].payload
allow := {"allowed": true, "headers": {"x-roles": concat(",", sort([r | some r in roles]))}} if {
	count(roles) > 0
	"reader" in roles
	input.attributes.request.http.method in {"GET", "HEAD"}
}

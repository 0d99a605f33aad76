package envoy.authz

import rego.v1

default allow := {"allowed": false, "http_status": 404}
claims := input.attributes.metadataContext.filterMetadata["envoy.filters.http.jwt_authn"].payload
tenant := input.attributes.request.http.headers["x-tenant"]
allow := {"allowed": true, "headers": {"x-plan": data.tenants[tenant].plan}, "request_headers_to_remove": ["x-tenant"]} if {
	claims.sub in data.tenants[tenant].members
	not data.tenants[tenant].suspended
}

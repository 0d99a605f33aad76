package envoy.authz

import rego.v1

default allow := {"allowed": false, "http_status": 403, "body": "denied: no rule matched\n"}

allow := {"allowed": true, "headers": {"x-bookinfo-role": claims.role}} if permitted

permitted if {
	claims.role in {"guest", "admin"}
	input.attributes.request.http.method == "GET"
	input.parsed_path[0] in {"details", "ratings"}
}

permitted if {
	claims.role == "admin"
	input.attributes.request.http.method == "POST"
	input.parsed_path[0] == "ratings"
	is_string(claims.name)
	is_object(input.parsed_body)
	not rates_own_name
}

rates_own_name if claims.name in object.keys(input.parsed_body)

# only claims of a token that RequestAuthentication has verified arrive here
claims := input.attributes.metadataContext.filterMetadata["envoy.filters.http.jwt_authn"].payload

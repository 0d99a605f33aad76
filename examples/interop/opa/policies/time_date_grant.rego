package envoy.authz

import rego.v1

default allow := false
now := input.attributes.request.time.seconds * 1000000000
allow := {"allowed": true, "headers": {"x-date": sprintf("%d-%d-%d", time.date([now, "UTC"]))}} if {
	some grant in data.grants
	grant.user == input.attributes.source.principal
	time.parse_rfc3339_ns(grant.until) > now
}

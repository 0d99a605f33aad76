package envoy.authz

import rego.v1

default allow := false
ip := input.attributes.source.address.socketAddress.address
allow := {"allowed": true, "headers": {"x-nets": sprintf("%v", [hits])}} if {
	hits := net.cidr_contains_matches(data.nets, ip)
	count(hits) > 0
}

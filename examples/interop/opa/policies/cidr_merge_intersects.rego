package envoy.authz

import rego.v1

default allow := false
merged := net.cidr_merge(data.nets)
allow := {"allowed": true, "headers": {"x-merged": concat(" ", sort([one | some one in merged]))}} if {
	some m in merged
	net.cidr_contains(m, input.attributes.source.address.socketAddress.address)
	net.cidr_intersects(m, "10.0.0.0/8")
}

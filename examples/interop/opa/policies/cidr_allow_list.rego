package envoy.authz

import rego.v1

default allow := false
ip := input.attributes.source.address.socketAddress.address
allow if { some range in data.nets; net.cidr_contains(range, ip) }

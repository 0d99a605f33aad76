package envoy.authz

import rego.v1

default allow := false
now := input.attributes.request.time.seconds * 1000000000
clock := time.clock(now)
weekday := time.weekday(now)
allow if {
	clock[0] >= 8
	clock[0] < 18
	not weekday in {"Saturday", "Sunday"}
}
allow if { now >= time.parse_rfc3339_ns(data.maintenance.from); now < time.parse_rfc3339_ns(data.maintenance.to) }

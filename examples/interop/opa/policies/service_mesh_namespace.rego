package envoy.authz

import rego.v1

default allow := false
peer := p if { parts := split(trim_prefix(input.attributes.source.principal, "spiffe://"), "/"); parts[1] == "ns"; p := {"td": parts[0], "ns": parts[2], "sa": parts[4]} }
allow if { peer.td == "cluster.local"; peer.ns in data.namespaces; not peer.sa in data.blocked }
allow if { peer.ns == "istio-system" }

package envoy.authz

import rego.v1

default allow := false
allow if {
	input.attributes.request.http.method == "POST"
	every item in input.parsed_body.items { item.qty > 0; item.qty <= 10; item.sku in data.skus }
	sum([item.qty | some item in input.parsed_body.items]) <= 15
}
allow if { input.attributes.request.http.method == "GET"; not input.truncated_body }

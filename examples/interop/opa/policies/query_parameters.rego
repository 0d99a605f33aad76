package envoy.authz

import rego.v1

default allow := false
page := to_number(input.parsed_query.page[0])
allow := {"allowed": true, "query_parameters_to_set": {"limit": "100"}, "query_parameters_to_remove": ["debug"]} if {
	page >= 0
	page < 50
	not "1" in object.get(input.parsed_query, "debug", [])
}

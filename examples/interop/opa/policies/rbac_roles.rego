package envoy.authz

import rego.v1

default allow := false
allow if {
	some role in data.bindings[input.attributes.source.principal]
	some grant in data.roles[role]
	grant.method == input.attributes.request.http.method
	glob.match(grant.path, ["/"], input.attributes.request.http.path)
}

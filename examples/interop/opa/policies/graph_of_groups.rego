package envoy.authz

import rego.v1

default allow := false
claims := input.attributes.metadataContext.filterMetadata["envoy.filters.http.jwt_authn"].payload
direct := {g | some g, members in data.groups; claims.sub in members}
indirect := {p | some g in direct; p := data.parents[g]}
all_groups := direct | indirect
allow if "staff" in all_groups
allow := {"allowed": false, "body": json.marshal(sort([g | some g in all_groups]))} if not "staff" in all_groups

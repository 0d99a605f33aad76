//! Why builtins of OPA are not offered; `docs/rego.md` lists them.

/// A name or a family of names, and why it is left out. The first that fits counts.
const REASONS: [(&str, &str); 29] = [
    ("crypto.parse_private_keys", "private keys do not belong into policies"),
    ("crypto.x509.", "the peer's certificate is verified already; read source.principal"),
    ("graph.", "its cost does not follow from its arguments' size"),
    ("graphql.", "there is no parser of GraphQL here"),
    ("http.send", "a decision must not wait for others; put what it needs into data or claims"),
    ("io.jwt.encode_sign", "signing keys do not belong into policies"),
    ("io.jwt.verify_es512", "it needs feature es512, for ring has no P-521"),
    ("json.marshal_with_options", "only json.marshal is offered"),
    ("json.match_schema", "there is no JSON schema here"),
    ("json.patch", "its cost does not follow from its arguments' size"),
    ("json.verify_schema", "there is no JSON schema here"),
    ("net.cidr_expand", "one block can be 2^128 addresses; use net.cidr_contains"),
    ("net.lookup_ip_addr", "a decision must not wait for others"),
    ("opa.runtime", "it shows the environment, which holds secrets"),
    ("print", "it writes request data where nobody masks it; remove it or use the decision log"),
    ("providers.aws.", "signing keys do not belong into policies"),
    ("rand.", "a decision must be the same when it is made again"),
    ("regex.", "its cost does not follow from its arguments' size; use regex.match"),
    ("rego.", "annotations and modules are not there at run time"),
    ("strings.render_template", "its cost does not follow from its arguments' size; use sprintf"),
    ("strings.replace_n", "its cost does not follow from its arguments' size; use replace"),
    ("time.", "only what is computed in UTC without a zone database is offered"),
    ("trace", "it writes request data where nobody masks it; remove it or use the decision log"),
    ("units.", "its cost does not follow from its arguments' size; use numbers"),
    ("urlquery.", "read input.parsed_query"),
    ("uuid.", "a decision must be the same when it is made again"),
    ("walk", "it visits everything there is; name what is looked for"),
    ("yaml.", "YAML's aliases make small texts large; use JSON"),
    ("", "it is not among those whose cost has been bounded"),
];

/// Why a builtin that OPA has is not offered.
pub(in crate::rego) fn reason(name: &str) -> &'static str {
    let fits = |(beginning, _): &&(&str, &str)| name.starts_with(beginning);
    REASONS.iter().find(fits).map_or("", |(_, reason)| reason)
}

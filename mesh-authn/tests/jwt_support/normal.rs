//! What the recorded proxy did to paths before its filter saw them: fragment cut, backslashes
//! turned, dot segments resolved, double slashes kept.

pub(crate) fn path(target: &str) -> String {
    let target = target.split('#').next().unwrap_or_default();
    let (path, query) = match target.split_once('?') {
        Some((path, query)) => (path, Some(query)),
        None => (target, None),
    };
    let path = path.replace('\\', "/");
    let mut segments: Vec<&str> = Vec::new();
    let mut rest = path.split('/').skip(1).peekable();
    while let Some(segment) = rest.next() {
        match segment {
            "." | ".." => {
                if segment == ".." {
                    segments.pop();
                }
                if rest.peek().is_none() {
                    segments.push("");
                }
            }
            _ => segments.push(segment),
        }
    }
    let path = if path.starts_with('/') { format!("/{}", segments.join("/")) } else { path };
    match query {
        Some(query) => format!("{path}?{query}"),
        None => path,
    }
}

//! `cargo run --example bookinfo`: the walk-through, or the services for tools from outside.

use std::path::PathBuf;
use std::process::ExitCode;

use bookinfo::serve::{Section, serve};
use bookinfo::{BoxError, Outcome, run};

const HELP: &str = "\
The bookinfo walk-through without a cluster, a sidecar or a container.

Usage:
  bookinfo                                    play every step and print the table
  bookinfo serve --dir DIR [--section S]      keep the services running with the
                                              policies of section S (B, D, E, F or G;
                                              default E) and write bookinfo.json,
                                              certificates, keys and tokens to DIR
  bookinfo --help                             this text

Examples:
  cargo run --example bookinfo
  cargo run --example bookinfo -- serve --dir /tmp/bookinfo --section B
";

#[tokio::main]
async fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let done = match arguments.as_slice() {
        [] => play().await,
        ["--help" | "-h" | "help"] => {
            print!("{HELP}");
            Ok(ExitCode::SUCCESS)
        }
        ["serve", options @ ..] => match Options::parse(options) {
            Ok(Options { dir, section }) => serve(&dir, section).await.map(|()| ExitCode::SUCCESS),
            Err(error) => Err(error),
        },
        _ => Err("unknown command; try --help".into()),
    };
    done.unwrap_or_else(|error| {
        eprintln!("bookinfo: {error}");
        ExitCode::FAILURE
    })
}

async fn play() -> Result<ExitCode, BoxError> {
    let table = run().await?;
    let failed = table.count(Outcome::Fail) > 0;
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

struct Options {
    dir: PathBuf,
    section: Section,
}

impl Options {
    fn parse(mut rest: &[&str]) -> Result<Self, BoxError> {
        let mut dir = None;
        let mut section = Section::E;
        while let [name, value, more @ ..] = rest {
            match *name {
                "--dir" => dir = Some(PathBuf::from(value)),
                "--section" => section = value.parse()?,
                _ => return Err("unknown option; try --help".into()),
            }
            rest = more;
        }
        match (rest, dir) {
            ([], Some(dir)) => Ok(Self { dir, section }),
            ([], None) => Err("serve needs --dir DIR".into()),
            _ => Err("an option without its value; try --help".into()),
        }
    }
}

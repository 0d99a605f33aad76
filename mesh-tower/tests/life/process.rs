//! What a process as a whole does to a server: its environment, and its limits. Each runs a test of
//! this program in a process of its own.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use mesh_tower::Policies;
use tokio::net::TcpStream;

use crate::support::{Held, PATIENCE, SetClock, authority, hold_plain, serve};

/// [SEC-TLS-16] `SSLKEYLOGFILE` is not looked at by either end of a connection.
#[test]
fn sec_tls_16_no_key_log_over_sockets() {
    let file = std::env::temp_dir().join(format!("mesh-key-log-{}", std::process::id()));
    let run = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "end::sec_tls_11_an_overlapping_rotation_ends_nothing"])
        .env("SSLKEYLOGFILE", &file)
        .output()
        .unwrap();
    let text = String::from_utf8(run.stdout).unwrap();
    assert!(run.status.success() && text.contains("1 passed"), "{text}");
    assert!(!file.exists());
}

/// [SEC-TLS-14] A server that runs out of files accepts again when there are some: the accept loop
/// does not end.
#[tokio::test(flavor = "multi_thread")]
async fn sec_tls_14_out_of_files_is_not_the_end() {
    const FILES: usize = 48;
    let limited = format!("ulimit -n {FILES} && exec \"$0\" \"$@\"");
    let mut server = Command::new("sh")
        .args(["-c", &limited])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "process::serves_until_it_is_killed", "--ignored", "--nocapture"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(server.stdout.take().unwrap()).lines().map_while(Result::ok);
    let address = lines.find_map(|line| line.split_once("serves at ")?.1.parse().ok()).unwrap();
    let ask = async || {
        let (mut held, _end): (Held, _) = hold_plain(address).await;
        tokio::time::timeout(Duration::from_secs(1), held.status("/")).await.ok().flatten()
    };
    assert_eq!(ask().await, Some(200));
    let mut held = Vec::new();
    for _ in 0..2 * FILES {
        held.push(TcpStream::connect(address).await.unwrap());
    }
    assert_eq!(ask().await, None, "there are files left: nothing is shown");
    drop(held);
    let begun = Instant::now();
    while ask().await != Some(200) {
        assert!(begun.elapsed() < PATIENCE, "it accepts nobody any more");
    }
    server.kill().unwrap();
    server.wait().unwrap();
}

#[tokio::test]
#[ignore = "a process of its own for the test above"]
async fn serves_until_it_is_killed() {
    let server = serve(&authority(), &SetClock::default(), Policies::none(), |_| {}).await;
    println!("serves at {}", server.address);
    server.done.await.unwrap().unwrap();
}

//! What established clients notice of clients that mean no good, and what idle ones cost:
//! `cargo bench -p mesh-benches --bench floods` ([SEC-TLS-14], [SEC-HTTP-14]).
//!
//! The server is a process of its own on one core; all clients share another, where the established
//! ones go first, so that what they see is the server's and not the attackers' hunger.
#![expect(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::cast_precision_loss,
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a measurement that goes wrong must stop"
)]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use axum::Router;
use axum::routing::any;
use bytes::Bytes;
use http_body_util::Empty;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use mesh_benches::files::{connector, mesh, read_token, write_identities};
use mesh_benches::service::{ask, request, strict_policies};
use mesh_tower::{Connector, Limits, Mesh, MeshStream, Policies};
use rustix::process::{Resource, Rlimit, getrlimit, setpriority_process, setrlimit};
use rustix::thread::{CpuSet, sched_setaffinity};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tower::ServiceExt as _;

/// Established clients, and the pause between two requests of one.
const ESTABLISHED: usize = 100;
const PAUSE: Duration = Duration::from_millis(10);

/// How long each measurement lasts.
const PHASE: Duration = Duration::from_secs(4);

/// Slow clients of each kind, and the deadline they are given.
const SLOW: usize = 200;
const DEADLINE: Duration = Duration::from_secs(2);

const IDLE: usize = 10_000;

/// Handshakes that the flood has in flight.
const FLOOD: usize = 16;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["serve", dir, seconds] => {
            run_on(0);
            serve(Path::new(dir), Duration::from_secs(seconds.parse().unwrap()));
        }
        ["flood", dir, address] => {
            run_on(1);
            setpriority_process(None, 19).unwrap();
            flood(Path::new(dir), address.parse().unwrap());
        }
        _ => {
            run_on(1);
            measure();
        }
    }
}

/// Keeps this process on one core.
fn run_on(core: usize) {
    let mut cores = CpuSet::new();
    cores.set(core);
    sched_setaffinity(None, &cores).unwrap();
    let most = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most }).unwrap();
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

fn serve(dir: &Path, deadline: Duration) {
    let mut limits = Limits::default();
    limits.handshake = deadline;
    limits.request_head = deadline;
    limits.request_body = Some(deadline);
    let app = Router::new().fallback(any(|_read: Bytes| async { "hello" }));
    runtime().block_on(async {
        let mesh = mesh(dir, "server", strict_policies(), limits);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        println!("{}", listener.local_addr().unwrap());
        mesh.serve(listener, app, std::future::pending()).await.unwrap();
    });
}

/// Whole handshakes as fast as they go; prints how many until it is killed.
fn flood(dir: &Path, address: SocketAddr) {
    runtime().block_on(async {
        let web = mesh(dir, "web", Policies::none(), Limits::default());
        let tasks = (0..FLOOD).map(|_| {
            let web = web.clone();
            tokio::spawn(async move {
                let begun = Instant::now();
                let mut done = 0;
                while begun.elapsed() < PHASE {
                    // A new connector has no session to resume.
                    drop(connect(&connector(&web, address)).await);
                    done += 1;
                }
                done
            })
        });
        let mut all = 0;
        for task in tasks.collect::<Vec<JoinHandle<usize>>>() {
            all += task.await.unwrap();
        }
        println!("{all}");
    });
}

/// A server process that ends with the value.
struct Server {
    process: Child,
    address: SocketAddr,
}

impl Server {
    fn start(dir: &Path, deadline: Duration) -> Self {
        let seconds = deadline.as_secs().to_string();
        let mut process = again(&["serve", dir.to_str().unwrap(), &seconds]);
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        Self { process, address: line.trim().parse().unwrap() }
    }

    /// Memory in use, in bytes.
    fn resident(&self) -> usize {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
    }
}

/// This program in another part.
fn again(arguments: &[&str]) -> Child {
    let program = std::env::current_exe().unwrap();
    Command::new(program).args(arguments).stdout(Stdio::piped()).spawn().unwrap()
}

struct Clients {
    dir: PathBuf,
    web: Mesh,
    token: String,
    /// The established clients' thread, and that of everybody else.
    established: Runtime,
    others: Runtime,
}

/// What the established clients saw.
struct Seen {
    half: Duration,
    most: Duration,
    longest: Duration,
}

fn measure() {
    let dir = std::env::temp_dir().join(format!("mesh-floods-{}", std::process::id()));
    fs::create_dir(&dir).unwrap();
    write_identities(&dir);
    let (established, others) = (runtime(), runtime());
    let web = {
        let _entered = established.enter();
        mesh(&dir, "web", Policies::none(), Limits::default())
    };
    let token = read_token(&dir);
    let clients = Clients { dir: dir.clone(), web, token, established, others };
    println!(
        "{ESTABLISHED} established clients, HTTP/1.1 over mutual TLS, 20 policies, token, a request \
         every {PAUSE:?} each; server on one core, clients on another; {PHASE:?} each\n"
    );
    println!("{:<38}{:>10}{:>10}{:>10}{:>10}", "", "p50 us", "p99 us", "max us", "p99 ratio");
    let server = Server::start(&dir, DEADLINE);
    let (quiet, ()) = clients.watch(&server, || std::thread::sleep(PHASE));
    quiet.print("quiet", &quiet);
    for slow in Slow::ALL {
        let (seen, ends) = clients.watch(&server, || clients.slow(&server, slow));
        seen.print(slow.name(), &quiet);
        let last = ends.iter().max().unwrap();
        println!("  {SLOW} clients, all ended; the last after {last:.2?} (limit {DEADLINE:?})");
        assert!(*last < DEADLINE + Duration::from_secs(1), "{}: {last:?}", slow.name());
    }
    drop(server);

    let server = Server::start(&dir, Duration::from_secs(120));
    let before = server.resident();
    let held = clients.idle(&server);
    let each = server.resident().saturating_sub(before) / IDLE;
    let (seen, ()) = clients.watch(&server, || std::thread::sleep(PHASE));
    seen.print(&format!("{IDLE} idle TLS connections"), &quiet);
    println!("  {each} bytes of the server's memory each, handshake done, no request yet");
    drop(held);
    drop(server);

    let server = Server::start(&dir, Duration::from_secs(120));
    let (seen, shaken) = clients.watch(&server, || clients.flood(&server));
    seen.print("handshake flood", &quiet);
    let rate = shaken as f64 / PHASE.as_secs_f64();
    println!("  {rate:.0} whole handshakes a second, {FLOOD} in flight");
    let (seen, ()) = clients.watch(&server, || std::thread::sleep(PHASE));
    seen.print("quiet again", &quiet);
    drop(server);
    fs::remove_dir_all(dir).unwrap();
}

impl Seen {
    fn print(&self, name: &str, quiet: &Self) {
        let ratio = self.most.as_secs_f64() / quiet.most.as_secs_f64();
        let [half, most, longest] = [self.half, self.most, self.longest].map(|t| t.as_micros());
        println!("{name:<38}{half:>10}{most:>10}{longest:>10}{ratio:>10.2}");
    }
}

impl Clients {
    /// What the established clients see while `meanwhile` runs.
    fn watch<T>(&self, server: &Server, meanwhile: impl FnOnce() -> T) -> (Seen, T) {
        let stop = Arc::new(AtomicBool::new(false));
        let mut tasks: Vec<JoinHandle<Vec<Duration>>> = Vec::new();
        let connector = connector(&self.web, server.address);
        for _ in 0..ESTABLISHED {
            let mut send = self.established.block_on(async {
                let stream = connect(&connector).await.unwrap();
                let (send, connection) = handshake(stream).await.unwrap();
                tokio::spawn(connection);
                send
            });
            let (stop, token) = (Arc::clone(&stop), self.token.clone());
            tasks.push(self.established.spawn(async move {
                let mut times = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    times.push(once(&mut send, &token).await);
                    sleep(PAUSE).await;
                }
                times
            }));
        }
        let result = meanwhile();
        stop.store(true, Ordering::Relaxed);
        let mut times = Vec::new();
        for task in tasks {
            // The first requests fill caches.
            times.extend(self.established.block_on(task).unwrap().into_iter().skip(20));
        }
        times.sort_unstable();
        let (half, most) = (times[times.len() / 2], times[times.len() * 99 / 100]);
        (Seen { half, most, longest: *times.last().unwrap() }, result)
    }

    /// How long each of the slow clients was borne with.
    fn slow(&self, server: &Server, slow: Slow) -> Vec<Duration> {
        self.others.block_on(async {
            let connector = connector(&self.web, server.address);
            let tasks = (0..SLOW).map(|_| {
                let (connector, token) = (connector.clone(), self.token.clone());
                tokio::spawn(slow.attack(connector, server.address, token))
            });
            let mut ends = Vec::new();
            for task in tasks.collect::<Vec<_>>() {
                ends.push(task.await.unwrap());
            }
            ends
        })
    }

    /// Connections that have shaken hands and say nothing.
    fn idle(&self, server: &Server) -> Vec<MeshStream> {
        self.others.block_on(async {
            let connector = connector(&self.web, server.address);
            let tasks = (0..8).map(|_| {
                let connector = connector.clone();
                tokio::spawn(async move {
                    let mut held = Vec::new();
                    for _ in 0..IDLE / 8 {
                        held.push(connect(&connector).await.unwrap());
                    }
                    held
                })
            });
            let mut held = Vec::new();
            for task in tasks.collect::<Vec<_>>() {
                held.extend(task.await.unwrap());
            }
            held
        })
    }

    /// Handshakes that a flood in another process has made.
    fn flood(&self, server: &Server) -> usize {
        let address = server.address.to_string();
        let process = again(&["flood", self.dir.to_str().unwrap(), &address]);
        let output = process.wait_with_output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
    }
}

async fn connect(connector: &Connector) -> Result<MeshStream, mesh_tower::ConnectError> {
    connector.clone().oneshot("https://server/".parse().unwrap()).await
}

async fn once(send: &mut SendRequest<Empty<Bytes>>, token: &str) -> Duration {
    let request = request(token);
    let begun = Instant::now();
    assert_eq!(ask(send, request).await, 200);
    begun.elapsed()
}

/// Where a client is slow.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Slow {
    /// Connects and says nothing.
    Silent,
    /// The first byte of a handshake, and no more.
    OneByte,
    /// A byte of ClientHello a second.
    Hello,
    /// A byte of a header a second, after a handshake.
    Headers,
    /// A body that stands still after its first byte.
    Body,
}

impl Slow {
    const ALL: [Self; 5] = [Self::Silent, Self::OneByte, Self::Hello, Self::Headers, Self::Body];

    fn name(self) -> &'static str {
        match self {
            Self::Silent => "sniff: silence",
            Self::OneByte => "sniff: one byte",
            Self::Hello => "handshake: a byte a second",
            Self::Headers => "headers: a byte a second",
            Self::Body => "body that stands still",
        }
    }

    /// Until the server ends it; counted from the end of what was sent at once.
    async fn attack(self, connector: Connector, address: SocketAddr, token: String) -> Duration {
        let begin = match self {
            Self::Silent => String::new(),
            Self::OneByte | Self::Hello => "\x16".to_owned(),
            Self::Headers => "GET /service-20/ HTTP/1.1\r\nhost: server\r\nx-slow: ".to_owned(),
            Self::Body => format!(
                "GET /service-20/ HTTP/1.1\r\nhost: server\r\nauthorization: Bearer {token}\r\n\
                 content-length: 100\r\n\r\nx"
            ),
        };
        let hello = [&[3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &[7; 100]].concat();
        match self {
            Self::Silent | Self::OneByte => {
                starve(TcpStream::connect(address).await.unwrap(), &begin, &[]).await
            }
            Self::Hello => starve(TcpStream::connect(address).await.unwrap(), &begin, &hello).await,
            Self::Headers => {
                let stream = TokioIo::new(connect(&connector).await.unwrap());
                starve(stream, &begin, &[b'a'; 100]).await
            }
            Self::Body => {
                let stream = TokioIo::new(connect(&connector).await.unwrap());
                starve(stream, &begin, &[]).await
            }
        }
    }
}

/// Sends the beginning, then a byte a second, until the server closes; tells when it did.
async fn starve(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    first: &str,
    drip: &[u8],
) -> Duration {
    let begun = Instant::now();
    stream.write_all(first.as_bytes()).await.unwrap();
    stream.flush().await.unwrap();
    let mut drip = drip.iter();
    let mut read = [0; 1024];
    while begun.elapsed() < 10 * DEADLINE {
        match timeout(Duration::from_secs(1), stream.read(&mut read)).await {
            Ok(Ok(0) | Err(_)) => return begun.elapsed(),
            // An answer before the end, such as 408.
            Ok(Ok(_)) => {}
            Err(_) => {
                if let Some(byte) = drip.next()
                    && (stream.write_all(&[*byte]).await.is_err() || stream.flush().await.is_err())
                {
                    return begun.elapsed();
                }
            }
        }
    }
    panic!("the server does not end it")
}

//! `cargo xtask package`: what is in the package. What becomes of it on a host is tested with the
//! lab, in `tests/tests/systemd`.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::OnceLock,
};

const REVISIONS: [&str; 2] = ["1", "2"];

/// A folder that outlives the tests, under `target`.
fn folder() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

fn workspace() -> &'static Path {
    let manifest_dir = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest_dir.parent().expect("the workspace")
}

fn output(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().expect("a program");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}\n{text}\n{error}");
    text
}

fn exists(program: &str) -> bool {
    let found = Command::new("which").arg(program).output();
    found.is_ok_and(|found| found.status.success())
}

/// Packages of the same version and two revisions; nothing where this is no Debian.
fn packages() -> Option<&'static [PathBuf; 2]> {
    static MADE: OnceLock<Option<[PathBuf; 2]>> = OnceLock::new();
    MADE.get_or_init(|| {
        let tools = ["dpkg-deb", "dpkg-shlibdeps", "strip", "gzip"];
        if let Some(missing) = tools.iter().find(|tool| !exists(tool)) {
            eprintln!(
                "skipped: there is no {missing}; on Debian: apt-get install dpkg-dev binutils"
            );
            return None;
        }
        let make = |revision| {
            let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
            command.args(["package", "--debug", "--revision", revision]);
            command.arg("--out").arg(folder().join("package"));
            PathBuf::from(output(&mut command).trim())
        };
        Some(REVISIONS.map(make))
    })
    .as_ref()
}

/// What `dpkg-deb --contents` says: modes with owners, by path.
fn contents(package: &Path) -> BTreeMap<String, String> {
    let text = output(Command::new("dpkg-deb").arg("--contents").arg(package));
    let lines = text.lines().map(|line| {
        let words: Vec<_> = line.split_whitespace().collect();
        let path = words[5].trim_start_matches('.').to_owned();
        (path, format!("{} {}", words[0], words[1]))
    });
    lines.collect()
}

/// Files with the mode that they have in the package.
const WANTED: [(&str, &str); 16] = [
    ("/usr/bin/homing", "-rwxr-xr-x"),
    ("/usr/lib/systemd/system/homing.service", "-rw-r--r--"),
    ("/etc/homing/homing.toml", "-rw-r--r--"),
    ("/usr/share/man/man1/homing.1.gz", "-rw-r--r--"),
    ("/usr/share/man/man1/homing-key-begin.1.gz", "-rw-r--r--"),
    (
        "/usr/share/bash-completion/completions/homing",
        "-rw-r--r--",
    ),
    ("/usr/share/zsh/vendor-completions/_homing", "-rw-r--r--"),
    (
        "/usr/share/fish/vendor_completions.d/homing.fish",
        "-rw-r--r--",
    ),
    (
        "/usr/share/homing/prometheus/homing.rules.yml",
        "-rw-r--r--",
    ),
    ("/usr/share/homing/grafana/homing.json", "-rw-r--r--"),
    ("/usr/share/doc/homing/operating.md", "-rw-r--r--"),
    ("/usr/share/doc/homing/migration.md", "-rw-r--r--"),
    ("/usr/share/doc/homing/copyright", "-rw-r--r--"),
    ("/usr/share/doc/homing/libraries.txt", "-rw-r--r--"),
    ("/usr/share/doc/homing/changelog.Debian.gz", "-rw-r--r--"),
    ("/usr/share/doc/homing/examples/messages.py", "-rw-r--r--"),
];

#[test]
fn the_package_has_what_a_host_needs() {
    let Some([package, newer]) = packages() else {
        return;
    };
    let contents = contents(package);
    for (path, mode) in WANTED {
        let found = contents.get(path).map(String::as_str);
        assert_eq!(found, Some(&*format!("{mode} root/root")), "{path}");
    }
    for (path, mode) in &contents {
        assert!(mode.ends_with(" root/root"), "{path}: {mode}");
        let sound = !mode.starts_with('d') || mode.starts_with("drwxr-xr-x ");
        assert!(sound, "{path}: {mode}");
        // Nothing of an operator's, and nothing of a machine's own.
        let places = ["/etc/homing/", "/usr/"];
        let is_folder = mode.starts_with('d');
        let there = places.iter().any(|place| path.starts_with(place));
        assert!(is_folder || there, "{path}");
        assert!(!path.starts_with("/usr/local"), "{path}");
    }

    let field = |package: &Path, name| {
        let mut command = Command::new("dpkg-deb");
        output(command.arg("--field").arg(package).arg(name))
            .trim()
            .to_owned()
    };
    assert_eq!(field(package, "Package"), "homing");
    assert_eq!(field(package, "Version"), "0.1.0-1");
    assert_eq!(field(newer, "Version"), "0.1.0-2");
    let architecture = output(Command::new("dpkg").arg("--print-architecture"));
    assert_eq!(field(package, "Architecture"), architecture.trim());
    let size: u64 = field(package, "Installed-Size").parse().expect("KiB");
    assert!(size > 5_000, "{size} KiB");

    let unpacked = folder().join("unpacked");
    fs::remove_dir_all(&unpacked).ok();
    output(
        Command::new("dpkg-deb")
            .arg("--raw-extract")
            .arg(package)
            .arg(&unpacked),
    );
    depends_are_of_what_it_links(&unpacked, &field(package, "Depends"));
    output(
        Command::new("md5sum")
            .args(["--check", "--quiet", "DEBIAN/md5sums"])
            .current_dir(&unpacked),
    );
    let read = |path: &str| fs::read_to_string(unpacked.join(path)).expect(path);
    assert_eq!(read("DEBIAN/conffiles"), "/etc/homing/homing.toml\n");
    let example = fs::read_to_string(workspace().join("dist/homing.toml")).expect("example");
    assert_eq!(read("etc/homing/homing.toml"), example);
    for script in ["postinst", "prerm", "postrm"] {
        let text = read(&format!("DEBIAN/{script}"));
        let head = text.lines().filter(|line| !line.starts_with("# "));
        let head: Vec<_> = head.take(2).collect();
        assert_eq!(head[0], "#!/bin/sh", "{script}");
        assert!(text.lines().any(|line| line == "set -e"), "{script}");
        output(
            Command::new("sh")
                .arg("-n")
                .arg(unpacked.join("DEBIAN").join(script)),
        );
    }
    // What the unit and the alerts name is where they say.
    let unit = read("usr/lib/systemd/system/homing.service");
    let rules = read("usr/share/homing/prometheus/homing.rules.yml");
    let mut named = BTreeSet::new();
    for text in [&unit, &rules] {
        for (at, scheme) in text.match_indices("file://") {
            let path = &text[at + scheme.len()..];
            let end = path.find(['#', '\n', ' ']).unwrap_or(path.len());
            named.insert(&path[..end]);
        }
    }
    assert_eq!(
        Vec::from_iter(named),
        ["/usr/share/doc/homing/operating.md"]
    );
    assert!(unit.contains("\nExecStart=/usr/bin/homing agent\n"));
    // A page for each command, and a name for each page.
    let homing = unpacked.join("usr/bin/homing");
    let pages = folder().join("pages");
    fs::create_dir_all(&pages).expect("folder");
    output(Command::new(&homing).arg("man").arg(&pages));
    for page in fs::read_dir(&pages).expect("pages") {
        let name = page.expect("page").file_name().into_string().expect("name");
        let packed = contents.contains_key(&format!("/usr/share/man/man1/{name}.gz"));
        assert!(packed, "{name}");
    }
    let completion = unpacked.join("usr/share/bash-completion/completions/homing");
    output(Command::new("bash").arg("-n").arg(completion));
    let libraries = read("usr/share/doc/homing/libraries.txt");
    assert!(libraries.contains("\nfoca v"), "{libraries}");
    let here = workspace().display().to_string();
    assert!(!libraries.contains(&here), "{libraries}");
}

#[test]
fn lintian_finds_nothing_wrong_with_the_package() {
    if !exists("lintian") {
        eprintln!("skipped: there is no lintian; get it with: apt-get install lintian");
        return;
    }
    if let Some([package, _]) = packages() {
        let mut command = Command::new("lintian");
        command.args(["--allow-root", "--fail-on", "error,warning"]);
        output(command.arg(package));
    }
}

fn depends_are_of_what_it_links(unpacked: &Path, depends: &str) {
    let mut command = Command::new("readelf");
    let dynamic = output(command.arg("-dW").arg(unpacked.join("usr/bin/homing")));
    let needed = dynamic.lines().filter(|line| line.contains("(NEEDED)"));
    let needed = needed.filter_map(|line| line.split_once('[')?.1.strip_suffix(']'));
    let needed: Vec<_> = needed.collect();
    assert!(needed.contains(&"libc.so.6"), "{needed:?}");
    for library in needed {
        let owner = output(Command::new("dpkg").arg("--search").arg(library));
        let owners = owner.lines().filter_map(|line| line.split(':').next());
        let mut owners = owners.filter(|owner| {
            let mut named = depends.split(", ").filter_map(|one| one.split(' ').next());
            named.any(|name| name == *owner)
        });
        assert!(owners.next().is_some(), "{library}: {depends}");
    }
}

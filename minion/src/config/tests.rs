#![allow(clippy::unwrap_used, reason = "a test may panic")]
use super::*;

fn parse(text: &str) -> Result<Config, String> {
    Config::parse("/etc/minion/minion.toml".into(), text).map_err(|error| error.to_string())
}

#[test]
fn what_is_not_said_has_its_default() {
    let config = parse("name = \"Web1\"\n").unwrap();
    assert_eq!((config.name.as_str(), config.listen.to_string()), ("web1", "0.0.0.0:51234".to_owned()));
    assert_eq!(config.spawner_socket(), Path::new("/var/lib/minion/spawner.sock"));
    assert_eq!((config.limits.job_time_max, config.audit.max_bytes), (Duration::from_secs(7 * 86_400), 67_108_864));
}

#[test]
fn what_is_said_holds() {
    let text = "name = \"web1\"\nlisten = \"127.0.0.1:0\"\nstate_dir = \"state\"\nacl_dir = \"/acl\"\n\
                [limits]\nheader_timeout = \"1m 30s\"\noutput_max_bytes = 7\n";
    let config = parse(text).unwrap();
    assert_eq!((config.state_dir.as_path(), config.acl_dir.as_path()), (Path::new("/etc/minion/state"), Path::new("/acl")));
    assert_eq!((config.limits.header_timeout, config.limits.output_max_bytes), (Duration::from_secs(90), 7));
    assert_eq!((config.limits.jobs_max, config.retention.count), (128, 100_000));
    assert!(config.user.is_none());
    assert_eq!(parse("name = \"web1\"\nuser = \"nobody\"\n").unwrap().user.unwrap().name(), "nobody");
}

#[test]
fn what_may_not_stand_there_is_named_with_its_line() {
    for (text, said) in [
        ("name = \"web1\"\nport = 1\n", "minion.toml:2: unknown field `port`, expected one of `name`, `user`, `listen`"),
        ("name = \"web1\"\n\n[limits]\nidle = 1\n", "minion.toml:4: unknown field `idle`, expected one of `body_max_bytes`"),
        ("name = \"a b\"\n", "minion.toml:1: \"a b\" is not a name"),
        ("[limits]\n\nidle_timeout = \"soon\"\n", "minion.toml:3: \"soon\" is not a length of time: write it like"),
        ("[limits]\nidle_timeout = 3\n", "minion.toml:2: "),
        ("[limits]\nconnections_max = 0\n", "minion.toml:2: 0 would let nothing through"),
        ("[limits]\nbody_max_bytes = 5000000000\n", "minion.toml:2: "),
        ("[retention]\nage = \"59m\"\n", "minion.toml:2: every job is kept for at least 60m"),
        ("[retention]\ncounts = 1\n", "minion.toml:2: unknown field `counts`, expected one of `age`, `count`, `bytes`"),
        ("[audit]\nmax_bytes = 0\n", "minion.toml:2: 0 would let nothing through"),
        ("[audit]\nfiles = 1001\n", "minion.toml:2: 1001 is more than 1000"),
        ("listen = \"here\"\n", "minion.toml:1: "),
        ("name = \"web1\"\nuser = \"no-such-user\"\n", "minion.toml:2: user: this host has no user \"no-such-user\": run `useradd"),
        ("name = \"web1\"\n\nuser = \"root\"\n", "minion.toml:3: user: \"root\" is root, or in its group"),
        ("authority = \"\"\n", "minion.toml:1: the authority's address is written HOST or HOST:PORT"),
        ("[limits]\nfollowups_max = 10001\n", "minion.toml:2: 10000 is the most: a job's outcome names them all"),
        ("[trust]\nstale_crl = \"warn\"\n", "minion.toml:2: it must be \"serve\" or \"refuse\""),
        ("[trust]\ncrl_every = \"900ms\"\n", "minion.toml:2: the authority is asked once in 1s at the most"),
        ("name = \n", "minion.toml:1: "),
    ] {
        let problem = parse(text).unwrap_err();
        assert!(problem.contains(said), "{problem:?} does not say {said:?}");
    }
}

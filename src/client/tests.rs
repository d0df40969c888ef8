//! Tests of clients, their tokens and their rights.

use super::*;

fn clients(sections: &[(&str, &[&str], &[&str])]) -> Result<usize, String> {
    let settings: Vec<_> = sections
        .iter()
        .map(|(token, organizations, models)| ClientSettings {
            id: Some("alice".into()),
            token: Some(SecretSource::Text(Secret::new(*token))),
            token_sha256: None,
            token_file: None,
            organizations: organizations.iter().map(|&name| name.into()).collect(),
            models: models.iter().map(|&name| name.into()).collect(),
        })
        .collect();
    Clients::new(&settings).map(|clients| clients.len())
}

#[test]
fn client_has_one_set_of_rights_however_many_tokens() {
    let (one, both) = (&["org-a"][..], &["org-a", "org-b"][..]);
    assert_eq!(
        clients(&[("old", both, &[]), ("new", &["org-b", "org-a"], &[])]),
        Ok(2),
        "a token is being rotated"
    );
    assert_eq!(clients(&[("same", one, &[]), ("same", one, &[])]), Ok(1));
    for (token, organizations, models) in
        [("new", both, &[][..]), ("new", one, &["gpt"]), ("old", &[], &[])]
    {
        let fault = clients(&[("old", one, &[]), (token, organizations, models)])
            .expect_err("two sets of rights");
        assert_eq!(fault, "client alice: is there twice, with different organizations or models");
    }
}

/// The clients of these `[[client]]` sections.
fn of_sections(text: &str) -> Result<Clients, String> {
    #[derive(Deserialize)]
    struct File {
        client: Vec<ClientSettings>,
    }
    let file: File = toml::from_str(text).map_err(|error| error.to_string())?;
    Clients::new(&file.client)
}

/// The client that a token stands for.
fn whose<'c>(clients: &'c Clients, token: &str) -> Option<&'c str> {
    clients.by_token.get(&hash(token)).map(|client| client.id.as_str())
}

#[test]
fn client_says_one_way_in_which_it_is_known() {
    let hex = "ABCDEF0123456789abcdef0123456789abcdef0123456789abcdef0123456789";
    let one_of = "give exactly one of token, token_sha256, token_file";
    for (options, expected) in [
        ("", "client: id is missing".into()),
        (
            "id = \"alice\"\ntoken = \"canary\"\ntoken_file = \"/x\"",
            format!("client alice: {one_of}"),
        ),
        (
            &format!("id = \"alice\"\ntoken = \"canary\"\ntoken_sha256 = \"{hex}\""),
            format!("client alice: {one_of}"),
        ),
        (
            &format!("id = \"alice\"\ntoken_file = \"/x\"\ntoken_sha256 = \"{hex}\""),
            format!("client alice: {one_of}"),
        ),
        ("token = \"canary\"", "client: id is missing".into()),
        (&format!("token_sha256 = \"{hex}\""), "client: id is missing".into()),
        ("id = \"\"\ntoken = \"canary\"", "client: id is empty".into()),
        (
            "id = \"alice\"\ntoken = \"\"",
            "client alice: token: the secret in the file is empty".into(),
        ),
        (
            "id = \"alice\"\ntoken_file = \"/x\"",
            "client: token_file names its own ids: leave id out".into(),
        ),
    ] {
        assert_eq!(
            of_sections(&format!("[[client]]\n{options}")).err(),
            Some(expected),
            "{options}"
        );
    }
    for wrong in [&hex[1..], &format!("{hex}0"), &hex.replace('A', "g"), &hex.replace('A', "+"), ""]
    {
        let fault =
            of_sections(&format!("[[client]]\nid = \"alice\"\ntoken_sha256 = \"{wrong}\"")).err();
        assert_eq!(
            fault.as_deref(),
            Some("client alice: token_sha256 is not 64 hex digits"),
            "{wrong}"
        );
    }
    let tokenless =
        of_sections("[[client]]\nid = \"alice\"").expect("its tokens are in the ledger");
    assert!(tokenless.is_empty());
    let known =
        of_sections(&format!("[[client]]\nid = \"alice\"\ntoken_sha256 = \"{hex}\"")).unwrap();
    let kept = *known.by_token.keys().next().expect("one token");
    assert_eq!((kept[0], kept[1], kept[3], kept[31]), (0xab, 0xcd, 0x01, 0x89));
}

#[test]
fn token_file_has_a_client_a_line() {
    let path = std::env::temp_dir().join(format!("warmkey-tokens-{}", std::process::id()));
    let section = format!(
        "[[client]]\ntoken_file = {path:?}\norganizations = [\"org-a\"]\nmodels = [\"gpt\"]\n"
    );
    let read = |text: &str| {
        std::fs::write(&path, text).expect("the temporary folder can be written");
        of_sections(&section)
    };
    let text = "# who\n\nalice wk-1\r\n  \t\n  bob\twk-2  \n#carol wk-3\nalice wk-4\nalice wk-1";
    let clients = read(text).unwrap_or_else(|fault| panic!("{fault}"));
    let known = ["wk-1", "wk-2", "wk-4"].map(|token| whose(&clients, token));
    assert_eq!((known, clients.len()), ([Some("alice"), Some("bob"), Some("alice")], 3));
    assert_eq!((whose(&clients, "wk-3"), whose(&clients, "alice")), (None, None));
    let alice = &clients.by_token[&hash("wk-4")];
    assert!(alice.may_use_organization("org-a") && !alice.may_use_organization("org-b"));
    assert!(alice.may_ask_for(Some("gpt")) && !alice.may_ask_for(Some("gpt-mini")));
    let file = path.display();
    for (text, expected) in [
        ("alice wk-1\n\nbob", format!("client: token_file {file}: line 3 is not `id token`")),
        ("alice canary more", format!("client: token_file {file}: line 1 is not `id token`")),
        (
            "alice canary\nbob canary",
            format!("client: token_file {file}: client bob: has the same token as client alice"),
        ),
        ("", format!("client: token_file: the secret in {file} is empty")),
    ] {
        assert_eq!(read(text).err(), Some(expected), "{text}");
    }
    std::fs::remove_file(&path).expect("it is there");
}

#[test]
fn list_of_models_must_be_met_to_the_letter() {
    let of_models = |models: &[&str]| Client {
        models: models.iter().map(|&model| model.into()).collect(),
        ..Client::unrestricted("alice")
    };
    for (models, asked, may) in [
        (&[][..], Some("gpt-5.4"), true),
        (&[], None, true),
        (&["gpt-5.4", "gpt-6"], Some("gpt-6"), true),
        (&["gpt-5.4"], Some("gpt-5.4-mini"), false),
        (&["gpt-5.4"], Some("gpt-5"), false),
        (&["gpt-5.4"], Some("GPT-5.4"), false),
        (&["gpt-5.4"], Some(""), false),
        (&["gpt-5.4"], None, false),
    ] {
        assert_eq!(of_models(models).may_ask_for(asked), may, "{asked:?} of {models:?}");
    }
}

#[test]
fn client_without_a_key_is_found() {
    let sections = "[[client]]\nid = \"zoe\"\ntoken = \"z\"\norganizations = [\"org-c\"]\n\
                    [[client]]\nid = \"mia\"\ntoken = \"m\"\n\
                    organizations = [\"org-c\", \"org-d\"]\n\
                    [[client]]\nid = \"bob\"\ntoken = \"b\"\n\
                    organizations = [\"org-c\", \"org-a\"]\n\
                    [[client]]\nid = \"abe\"\ntoken = \"a\"\n";
    let clients = of_sections(sections).unwrap();
    let stranded =
        |organizations: &[&str]| clients.stranded(organizations).map(|client| client.id.as_str());
    assert_eq!(stranded(&["org-a", "org-b"]), Some("mia"), "the first by name");
    assert_eq!(stranded(&["org-c"]), None);
    assert!(clients.knows(&Secret::new("z")) && !clients.knows(&Secret::new("zoe")));
}

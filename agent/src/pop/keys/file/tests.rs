use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;

use super::*;
use crate::admin::fake::Folder;

const KEY: &str = "000102030405060708090a0b0c0d0e0f101112131415161718191A1B1C1D1E1F";

fn key_of_line() -> Key {
    std::array::from_fn(|i| i as u8)
}

fn stored(content: &str, mode: u32) -> (Folder, PathBuf) {
    let folder = Folder::new();
    let path = folder.0.join("pop.key");
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    (folder, path)
}

#[test]
fn a_bare_key_is_a_key_for_everything() {
    for content in [KEY.to_owned(), format!("# a key\n\n{KEY}\n")] {
        let (_folder, path) = stored(&content, 0o600);
        assert_eq!(KeyFile::read(&path).unwrap(), KeyFile::of(key_of_line()));
    }
}

#[test]
fn a_file_open_to_others_is_refused() {
    for mode in [0o644, 0o640, 0o604, 0o620] {
        let (_folder, path) = stored(KEY, mode);
        let error = KeyFile::read(&path).unwrap_err().to_string();
        assert!(error.contains(&format!("{mode:04o}")), "{error}");
        assert!(error.contains("chmod 600"), "{error}");
    }
}

#[test]
fn what_is_no_key_file_is_refused_without_showing_a_key() {
    let other = KEY.replace("00", "ff");
    for (content, why) in [
        (KEY[2..].to_owned(), "62 characters"),
        (String::new(), "no line `sign`"),
        (KEY.replace("0a", "0g"), "digit 21 or 22"),
        (format!("sign {KEY}\n"), "no line `session`"),
        (format!("{KEY}\n{other}\n"), "line 1 has no name"),
        (format!("sign {KEY}\nsing {KEY}\n"), "line 2 names none of"),
        (
            format!("sign {KEY}\nsign {KEY}\n"),
            "line 2 is a second `sign`",
        ),
        (
            format!("sign {KEY}\nnext {other}\nold {other}\nsession {KEY}"),
            "both `next` and `old`",
        ),
        (
            format!("sign {KEY}\nnext {KEY}\nsession {KEY}"),
            "the same id",
        ),
        (
            format!("sign {KEY}\nsession {KEY}\nnext-session {KEY}\nold-session {other}"),
            "both `next-session` and `old-session`",
        ),
        (
            format!("sign {KEY}\nsession {KEY}\nold-session {KEY}"),
            "for `session` have the same id",
        ),
        (
            format!("sign {KEY}\nsession {KEY}\nfragments {KEY}\nfragments {other}"),
            "line 4 is a second `fragments`",
        ),
        (
            format!("sign {KEY}\nsession {KEY}\nfragment {KEY}"),
            "line 3 names none of sign, next, old, session, next-session, old-session, fragments",
        ),
        (
            format!("sign {KEY}\nsession {KEY}\nfragments {}", &KEY[2..]),
            "line 3 has 62 characters",
        ),
        (format!("sign {KEY}\nfragments {KEY}"), "no line `session`"),
    ] {
        let (_folder, path) = stored(&content, 0o600);
        let error = KeyFile::read(&path).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
        assert!(!error.contains("0001020304"), "{error}");
    }
}

#[test]
fn a_missing_file_says_how_to_make_one() {
    let error = KeyFile::read(Path::new("/nonexistent/pop.key")).unwrap_err();
    assert!(error.to_string().contains("homing key new"));
}

#[test]
fn a_rotation_has_three_steps_in_order_and_leaves_the_other_keys_alone() {
    for (which, other) in [(Use::Sign, Use::Session), (Use::Session, Use::Sign)] {
        let first = KeyFile::of(key_of_line());
        assert_eq!(first.promote(which), Err(Untimely::NotBegun));
        assert_eq!(first.finish(which), Err(Untimely::Idle));
        let begun = first.begin(which).unwrap().unwrap();
        let Some(Other::Next(next)) = begun.keyring(which).other else {
            panic!("{begun:?}");
        };
        assert_eq!(begun.keyring(which).key, key_of_line());
        assert_eq!(begun.begin(which).unwrap(), Err(Untimely::Begun));
        assert_eq!(begun.finish(which), Err(Untimely::NotPromoted));
        let promoted = begun.promote(which).unwrap();
        assert_eq!(promoted.keyring(which).key, next);
        assert!(promoted.keyring(which).other == Some(Other::Old(key_of_line())));
        assert_eq!(promoted.begin(which).unwrap(), Err(Untimely::NotFinished));
        assert_eq!(promoted.promote(which), Err(Untimely::Promoted));
        let finished = promoted.finish(which).unwrap();
        assert!(finished.keyring(which) == Keyring::of(next));
        for file in [&begun, &promoted, &finished] {
            assert!(file.keyring(other) == first.keyring(other));
        }
        assert!(finished.begin(which).unwrap().is_ok());
    }
}

#[test]
fn the_first_step_with_the_key_of_session_ids_keeps_that_of_fragments() {
    let first = KeyFile::of(key_of_line());
    let signs = first.begin(Use::Sign).unwrap().unwrap();
    assert_eq!((signs.fragments, signs.fragments()), (None, &key_of_line()));
    let begun = first.begin(Use::Session).unwrap().unwrap();
    assert_eq!(begun.fragments, Some(key_of_line()));
    // One that has a key of its own keeps it, and one that was begun without a line
    // gets the key that hosts of the step before have.
    let own = KeyFile {
        fragments: Some([9; 32]),
        ..first
    };
    let begun_with_own = own.begin(Use::Session).unwrap().unwrap();
    assert_eq!(begun_with_own.fragments, Some([9; 32]));
    let bare = KeyFile {
        fragments: None,
        ..begun
    };
    let promoted = bare.promote(Use::Session).unwrap();
    assert_eq!(promoted.fragments, Some(key_of_line()));
    let bare = KeyFile {
        fragments: None,
        ..promoted
    };
    let finished = bare.finish(Use::Session).unwrap();
    assert_eq!(finished.fragments, Some(finished.session.key));
}

#[test]
fn a_file_is_replaced_whole_and_for_its_owner_alone() {
    let (_folder, path) = stored(KEY, 0o600);
    let begun = KeyFile::read(&path)
        .unwrap()
        .begin(Use::Sign)
        .unwrap()
        .unwrap();
    begun.write(&path).unwrap();
    assert_eq!(KeyFile::read(&path).unwrap(), begun);
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o600);
    assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
}

proptest! {
    #[test]
    fn text_and_back(
        keys: [Key; 4],
        forms in (0..3usize, 0..3usize),
        fragments: Option<Key>,
    ) {
        let keyring = |key: Key, other: Key, form: usize| Keyring {
            key,
            other: [None, Some(Other::Next(other)), Some(Other::Old(other))][form],
        };
        prop_assume!(key_id(&keys[0]) != key_id(&keys[1]));
        prop_assume!(key_id(&keys[2]) != key_id(&keys[3]));
        let sign = keyring(keys[0], keys[1], forms.0);
        let session = keyring(keys[2], keys[3], forms.1);
        let file = KeyFile { sign, session, fragments };
        prop_assert_eq!(KeyFile::parse(&file.to_string()), Ok(file));
    }

    #[test]
    fn no_text_panics(text in "(sign|next|old|(next-|old-)?session|fragments|#|[0-9a-f]{0,64}|\\PC|\n| ){0,12}") {
        let _ = KeyFile::parse(&text);
    }
}

#[test]
fn writing_a_file_touches_no_other() {
    let folder = std::env::temp_dir().join(format!("homing-keys-{}", std::process::id()));
    fs::create_dir(&folder).unwrap();
    let (path, other) = (folder.join("pop.key"), folder.join("pop.new"));
    fs::write(&other, "somebody's").unwrap();
    KeyFile::of([1; 32]).write(&path).unwrap();
    KeyFile::of([2; 32]).write(&path).unwrap();
    assert!(KeyFile::read(&path).unwrap() == KeyFile::of([2; 32]));
    assert_eq!(fs::read_to_string(&other).unwrap(), "somebody's");
    assert_eq!(fs::read_dir(&folder).unwrap().count(), 2);
    fs::remove_dir_all(&folder).unwrap();
}

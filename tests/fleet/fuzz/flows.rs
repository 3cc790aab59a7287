//! The files of flows: whatever is let through is a graph that can be run from its beginning to its end, and can be printed.

/// The bytes as the file of a flow.
pub fn flows(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let shape = match overlord::fuzzing::flow(text) {
        Ok(shape) => shape,
        Err(problems) => return assert!(!problems.is_empty(), "it is refused, and nobody says why"),
    };
    let mut places = vec![None; shape.nodes];
    for (place, node) in shape.order.iter().enumerate() {
        let before = places.get_mut(*node).expect("a node that there is").replace(place);
        assert_eq!(before, None, "it runs twice");
    }
    assert_eq!(shape.order.len() + shape.last, shape.nodes, "one never runs");
    for (from, to) in shape.edges {
        assert!(places[to].is_none_or(|to| places[from].is_some_and(|from| from < to)), "{to} would run before {from}");
    }
    assert!(shape.printed.iter().all(|text| text.ends_with('\n')));
}

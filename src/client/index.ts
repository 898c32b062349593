/** The client library `verbatim/client`: for browsers and Node, without a dependency. */
export {}

//! TCP connections that change kernels: taken out of one host, put into another, while
//! the client goes on. Three network namespaces (a client and two hosts that hold the same
//! service addresses) hang on a switch of the test's own, which sees, holds back and counts
//! every packet. Needs root.

mod tcp_repair {
    mod carried;
    mod case;
    mod half_closed;
    mod machine;
    mod matrix;
    mod refused;
    mod silent;
    mod socket;
    mod switch;
    mod trace;
}

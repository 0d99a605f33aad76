//! An embeddable certificate authority for SPIFFE X.509-SVIDs.

"""The built-in losses: one module per method, with the weights and options of its authors.

A module holds the losses of a method as classes, and two optional tables: `METHODS` has the terms
that `kdjax.recipes` offers by name, and `BUILDS_ON` names the method with which each is compared.
A new method is one new module here, and a line in `LOSSES` for each of its losses.
"""

# The name of a loss in configs -> where it is, as for a user's own loss.
LOSSES = {
    name: f"{__name__}.{place}"
    for name, place in {
        "cwd": "cwd:CWD",
        "pixelwise_kl": "kl:PixelwiseKL",
        "l2": "l2:L2",
        "nfd": "nfd:NFD",
        "pfs": "pfs:PFS",
        "gap_weighted_kl": "kl:GapWeightedKL",
        "skd_pairwise": "skd:SKDPairwise",
        "attention_transfer": "attention_transfer:AttentionTransfer",
        "pkd": "pkd:PKD",
        "dsd_pairs": "dsd:DSDPairs",
        "cirkd_minibatch": "cirkd:CIRKDMinibatch",
        "ifvd": "ifvd:IFVD",
        "dist_inter": "dist:DISTInter",
        "dist_intra": "dist:DISTIntra",
        "standardized_kl": "logit_standardization:StandardizedKL",
        "dkd": "kl:DKD",
        "wsld": "kl:WSLD",
        "bpkd": "bpkd:BPKD",
        "jml": "jml:JML",
        "fakd_kl": "fakd:FAKDKL",
        "fakd_cwd": "fakd:FAKDCWD",
        "isda_cross_entropy": "isda:ISDACrossEntropy",
        "ofd": "ofd:OFD",
        "standardized_l2": "phi_s:StandardizedL2",
        "attn_fd": "attn_fd:AttnFD",
        "mgd": "mgd:MGD",
        "cankd": "cankd:CanKD",
        "af_dcd": "af_dcd:AfDCD",
        "cirkd_memory": "cirkd:CIRKDMemory",
        "holistic": "skd:Holistic",
        "mas_kd": "mas_kd:MasKD",
    }.items()
}

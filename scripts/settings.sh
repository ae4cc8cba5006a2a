# shellcheck shell=bash
# Every method and its default setting, for the scripts that run several: on bundled data, and for base-to-new
# generalization on ViT-B/16 (16 shots). In the order in which the methods appeared.

DEFAULT_SETTINGS="
ZeroshotCLIP    tiny                          vit_b16
ZeroshotCLIP2   tiny                          vit_b16
CoOp            tiny_c4_ep50_batch32          vit_b16_ctxv1
CoCoOp          tiny_c4_ep10_batch1_ctxv1     vit_b16_c4_ep10_batch1_ctxv1
ProDA           tiny_c16_ep20_batch4          vit_b16_c2_e100_ctx16_warmup5_BZ64_ProDA
KgCoOp          tiny_c4_ep100_batch128_ctxv1  vit_b16_ep100_ctxv1
VPT             tiny_c2_ep10_batch4_8ctx      vit_b16_c2_ep5_batch4_4
IVLP            tiny_c2_ep10_batch4_2+2ctx    vit_b16_c2_ep5_batch4_2+2ctx
MaPLe           tiny_c2_ep10_batch4_2ctx      vit_b16_c2_ep5_batch4_2ctx
PromptSRC       tiny_c2_ep20_batch4_4+4ctx    vit_b16_c2_ep20_batch4_4+4ctx
CoPrompt        tiny_c2_ep8_batch4_2ctx       coprompt
BMIP            tiny_c2_ep10_batch4_2ctx      vit_b16_c2_ep10_batch4_2ctx
MaPLe_BMIP      tiny_c2_ep10_batch4_2ctx      vit_b16_c2_ep5_batch4_2ctx
PromptSRC_BMIP  tiny_c2_ep20_batch4_4+4ctx    vit_b16_c2_ep20_batch4_4+4ctx
CoPrompt_BMIP   tiny_c2_ep8_batch4_2ctx       coprompt
"

every_trainer() { # the names, in order
    awk 'NF { print $1 }' <<<"$DEFAULT_SETTINGS"
}

is_bundled() { # dataset: whether it comes with the repository, in assets
    case "$1" in
        digits | emoji*) return 0 ;;
        *) return 1 ;;
    esac
}

default_setting() { # trainer dataset -> the setting's name; nothing for a trainer that is not in the table
    local column=3 setting
    if is_bundled "$2"; then column=2; fi
    setting="$(awk -v trainer="$1" -v column="$column" '$1 == trainer { print $column }' <<<"$DEFAULT_SETTINGS")"
    if [ "$1/$2" = CoOp/imagenet ]; then
        setting=vit_b16_ep50_ctxv1 # as published: fewer epochs on ImageNet
    elif [ -f "configs/trainers/$1/${setting}_$2.yaml" ]; then
        setting="${setting}_$2" # a setting of this data set's own
    fi
    echo "$setting"
}

names_in() { # folder -> names of its YAML files or subfolders, in one line
    local path names=""
    for path in "$1"/*; do
        [ -e "$path" ] && names="$names, $(basename "$path" .yaml)"
    done
    echo "${names#, }"
}

chosen_setting() { # TRAINER or TRAINER=SETTING, dataset -> "trainer setting", or an error that names the choices
    local trainer="${1%%=*}" setting="" variable
    case "$trainer" in
        "" | *[!A-Za-z0-9_]*) trainer="?" ;; # no name of a folder
    esac
    [ -d "configs/trainers/$trainer" ] ||
        refuse "unknown trainer '${1%%=*}'; choose from $(names_in configs/trainers)"
    variable="CFG_$trainer"
    case "$1" in
        *=*) setting="${1#*=}" ;;
        *) setting="${!variable:-$(default_setting "$trainer" "$2")}" ;;
    esac
    [ -n "$setting" ] ||
        refuse "no default setting for $trainer; give $trainer=SETTING: $(names_in "configs/trainers/$trainer")"
    [ -f "configs/trainers/$trainer/$setting.yaml" ] ||
        refuse "$trainer has no setting '$setting'; choose from $(names_in "configs/trainers/$trainer")"
    echo "$trainer $setting"
}

# Sourced by /init of hosts that a tenant asks: COM2 leads to the tenant, and to a TPM.

# The line, and the names of the tools.
line() {
    stty -F /dev/ttyS1 38400 raw -echo clocal && exec 4<>/dev/ttyS1 || return 1
    for tool in flushcontext pcrread quote readpublic; do
        ln -s /usr/bin/tpm2 /bin/tpm2_$tool
    done
    export TPM2TOOLS_TCTI=cmd:/tpm-line
}

# fetch NAME: the tenant's file of this name, as /run/NAME.
fetch() {
    echo "get $1" >&4
    read -r size <&4
    [ "$size" -gt 0 ] && head -c "$size" <&4 >"/run/$1"
}

# give NAME: the tenant gets /run/NAME, and takes it.
give() {
    echo "put $1 $(stat -c %s "/run/$1")" >&4
    cat "/run/$1" >&4
    read -r size <&4
    [ "$size" = 0 ]
}

# The tenant's challenge is answered, by the host's own tools.
quote() {
    line && fetch challenge && fetch firmware.log || return 1
    /visorctl attest quote --firmware-log /run/firmware.log /run/challenge /run/evidence && give evidence
}

# refuses NAME WHY: the visor does not take the tenant's ticket of this name, for this reason.
refuses() {
    fetch "$1" || return 1
    /visorctl submit "/run/$1" 2>&1 | tee /run/said
    grep -q "$2" /run/said
}

# One that was sealed to what the visor was before it was booted; and one that was changed on the way.
forged() {
    refuses old "sealed for another visor" && refuses changed "changed on the way"
}

# It takes the one that is for it.
sealed() {
    fetch sealed && /visorctl submit /run/sealed
}

# Once; and none of another tenant's for the same VM.
again() {
    refuses sealed "taken before" && refuses others "exists already"
}

# And says for the tenant what came of it: the answer to its second challenge.
receipt() {
    fetch nonce && /visorctl receipt 0 --nonce "$(cat /run/nonce)" --out /run/receipt && give receipt
}

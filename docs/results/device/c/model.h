/* Written by atmc export, format c. Do not edit.
 *
 *     if (atmc_model_init() != ATMC_END)
 *         ... the artifact is damaged ...
 *     atmc_model_run(input, output);
 *
 * Bytes of constant memory: artifact 1722, other constants 0. Bytes of static
 * variables: 22762, which is 7786 for decoded weights, and one buffer for the work of the
 * decoder, 9044, and after that for activations, 14976.
 */
#ifndef ATMC_MODEL_H
#define ATMC_MODEL_H

#include "atmc_decode.h"

#ifdef __cplusplus
extern "C" {
#endif

#define ATMC_MODEL_CHANNELS 1
#define ATMC_MODEL_HEIGHT 28
#define ATMC_MODEL_WIDTH 28
#define ATMC_MODEL_INPUTS 784
#define ATMC_MODEL_OUTPUTS 10

/* Decode the artifact into static memory. ATMC_END: the model is ready. With any other status the
 * artifact was changed, and the model must not be run.
 */
atmc_status atmc_model_init(void);

/* The logits of one input: channel after channel, row after row, as the network takes it; images
 * have values from 0 to 1. The arrays must not overlap. Only one thread may run the model at once.
 */
void atmc_model_run(const float input[ATMC_MODEL_INPUTS], float output[ATMC_MODEL_OUTPUTS]);

#ifdef __cplusplus
}
#endif

#endif

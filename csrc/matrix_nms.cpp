#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>

#include "ops.h"
#include "packed_masks.h"

namespace sp_fast {

at::Tensor matrix_nms(const at::Tensor& words, const at::Tensor& score, bool gaussian, double sigma) {
    check_masks(words, score);
    const int64_t batch = words.size(0), masks = words.size(1), size = words.size(2);
    const at::Tensor cells = words.contiguous();
    const at::Tensor scores = score.to(at::kFloat).contiguous();
    at::Tensor decayed = at::empty({batch, masks}, scores.options());
    const int32_t* cells_data = cells.const_data_ptr<int32_t>();
    const float* scores_data = scores.const_data_ptr<float>();
    float* decayed_data = decayed.mutable_data_ptr<float>();
    const float slope = static_cast<float>(sigma);

    at::parallel_for(0, batch, 1, [&](int64_t begin, int64_t end) {
        for (int64_t b = begin; b < end; ++b) {
            const ImageMasks image(cells_data + b * masks * size, masks, size);
            const float* image_score = scores_data + b * masks;
            const std::vector<int64_t> order = best_first(image_score, masks);
            std::vector<float> most(masks, 0);  // by rank: largest IoU with an earlier mask
            std::vector<float> row(masks);
            for (int64_t j = 0; j < masks; ++j) {
                for (int64_t i = 0; i < j; ++i) {
                    const bool counts = !std::isnan(image_score[order[i]]);
                    row[i] = counts ? static_cast<float>(image.iou(order[i], order[j])) : 0;
                }
                float factor = 1;
                for (int64_t i = 0; i < j; ++i) {
                    most[j] = std::max(most[j], row[i]);
                    if (gaussian) {
                        factor = std::min(factor, std::exp(-slope * (row[i] * row[i] - most[i] * most[i])));
                    } else if (most[i] < 1) {
                        // A duplicate (most == 1) adds no decay to that of the mask it repeats.
                        factor = std::min(factor, (1 - row[i]) / (1 - most[i]));
                    }
                }
                decayed_data[b * masks + order[j]] = image_score[order[j]] * factor;
            }
        }
    });
    return decayed;
}

}  // namespace sp_fast
